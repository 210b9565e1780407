// Prints how large the client is where it is used: bundled, minified and gzipped. Fails above its limit.
import { gzipSync } from "node:zlib"
import { rolldown } from "rolldown"

/** What every page loads; what comes with the first WebSocket is told, too. */
const LIMIT_BYTES = 8 * 1024

const bundle = await rolldown({
  input: "src/index.ts",
  resolve: { conditionNames: ["stream-server-source", "import"] },
  // As in an application, whose own chunk holds what all of its parts need.
  preserveEntrySignatures: "allow-extension",
})
const { output } = await bundle.generate({ format: "es", minify: true })
const bytes = (chunk) => gzipSync(chunk.code, { level: 9 }).length
const first = bytes(output.find((chunk) => chunk.isEntry))
const all = output.reduce((sum, chunk) => sum + bytes(chunk), 0)

process.stdout.write(
  `airflow-stream-client, minified and gzipped: ${first} bytes of ${LIMIT_BYTES} at first, ${all} with WebSockets\n`,
)
if (first > LIMIT_BYTES) process.exit(1)
