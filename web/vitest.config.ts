import { fileURLToPath } from "node:url"
import { defaultServerConditions } from "vite"
import { defineConfig } from "vitest/config"

export default defineConfig({
  // The sources of the workspace's packages, so that they need no build first.
  resolve: { conditions: ["stream-server-source", ...defaultServerConditions] },
  ssr: { resolve: { conditions: ["stream-server-source", ...defaultServerConditions] } },
  test: { setupFiles: [fileURLToPath(new URL("support/oldest_browsers.js", import.meta.url))] },
})
