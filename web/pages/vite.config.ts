import { fileURLToPath } from "node:url"
import { defaultClientConditions, defaultServerConditions, defineConfig } from "vite"
import { compressFiles } from "./compressFiles.js"

const target = fileURLToPath(new URL("../../stream_server/web", import.meta.url))

export default defineConfig({
  plugins: [compressFiles(250_000)],
  // The sources of the client and the hooks, so that they need no build first.
  resolve: { conditions: ["stream-server-source", ...defaultClientConditions] },
  ssr: { resolve: { conditions: ["stream-server-source", ...defaultServerConditions] } },
  // Below a path prefix, the server changes the URLs of the HTML file only.
  experimental: {
    renderBuiltUrl: (name, { hostType }) => (hostType === "html" ? `/${name}` : { relative: true }),
  },
  build: {
    outDir: target,
    emptyOutDir: true,
    // The server's Content-Security-Policy forbids data: URLs.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // The oldest supported browsers (web/client/README.md).
    target: ["chrome100", "firefox100", "safari15.4"],
  },
  server: { proxy: { "/api": { target: process.env.STREAM_SERVER_URL ?? "http://127.0.0.1:8090", ws: true } } },
})
