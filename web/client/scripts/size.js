// Prints the size of the client in an application: bundled, minified and gzipped. Fails above the limit.
import { gzipSync } from "node:zlib"
import { rolldown } from "rolldown"

/** Of the part that each page loads. The parts that are loaded with the first WebSocket or the first triggered run have no limit. */
const LIMIT_BYTES = 9 * 1024

const bundle = await rolldown({
  input: "src/index.ts",
  resolve: { conditionNames: ["stream-server-source", "import"] },
  // As in an application, whose entry chunk has the modules that several chunks share.
  preserveEntrySignatures: "allow-extension",
})
const { output } = await bundle.generate({ format: "es", minify: true })
const bytes = (chunk) => gzipSync(chunk.code, { level: 9 }).length
const first = bytes(output.find((chunk) => chunk.isEntry))
const all = output.reduce((sum, chunk) => sum + bytes(chunk), 0)

process.stdout.write(
  `airflow-stream-client, minified and gzipped: ${first} bytes of ${LIMIT_BYTES}; ${all} with WebSockets\n`,
)
if (first > LIMIT_BYTES) process.exit(1)
