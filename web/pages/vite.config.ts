import { fileURLToPath } from "node:url"
import { defaultClientConditions, defaultServerConditions, defineConfig } from "vite"
import { compressed } from "./compressed.js"

const target = fileURLToPath(new URL("../../stream_server/web", import.meta.url))

export default defineConfig({
  plugins: [compressed(250_000)],
  // The client's and the hooks' sources, so that they need not be built first.
  resolve: { conditions: ["stream-server-source", ...defaultClientConditions] },
  ssr: { resolve: { conditions: ["stream-server-source", ...defaultServerConditions] } },
  build: {
    outDir: target,
    emptyOutDir: true,
    // A data: URL would need a looser policy than the server gives.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  server: { proxy: { "/api": { target: process.env.STREAM_SERVER_URL ?? "http://127.0.0.1:8090", ws: true } } },
})
