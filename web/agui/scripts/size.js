// Prints what the agent adds to a page that has @ag-ui/client: bundled, minified and gzipped. Fails above the limit.
import { gzipSync } from "node:zlib"
import { rolldown } from "rolldown"

const LIMIT_BYTES = 7 * 1024

const bundle = await rolldown({
  input: "src/index.ts",
  external: ["@ag-ui/client", "rxjs"],
  resolve: { conditionNames: ["stream-server-source", "import"] },
})
const { output } = await bundle.generate({ format: "es", minify: true })
const bytes = output.reduce((sum, chunk) => sum + gzipSync(chunk.code, { level: 9 }).length, 0)

process.stdout.write(`airflow-stream-agui, minified and gzipped: ${bytes} bytes of ${LIMIT_BYTES}\n`)
if (bytes > LIMIT_BYTES) process.exit(1)
