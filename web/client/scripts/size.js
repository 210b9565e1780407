// Prints how large the client is where it is used: bundled, minified and gzipped. Fails above its limit.
import { gzipSync } from "node:zlib"
import { build } from "vite"

const LIMIT_BYTES = 8 * 1024

const [bundle] = await build({
  configFile: false,
  logLevel: "warn",
  resolve: { conditions: ["stream-server-source"] },
  build: { write: false, target: "es2022", lib: { entry: "src/index.ts", formats: ["es"] } },
})
const bytes = gzipSync(bundle.output[0].code, { level: 9 }).length
process.stdout.write(`airflow-stream-client: ${bytes} bytes of ${LIMIT_BYTES}, minified and gzipped\n`)
if (bytes > LIMIT_BYTES) process.exit(1)
