import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { brotliCompressSync, gzipSync } from "node:zlib"
import type { Plugin } from "vite"

const WORTH_IT = /\.(css|html|js|svg)$/

/**
 * Writes each file of the build a second and a third time, compressed, and fails where all of them together are too large.
 *
 * @param limit Bytes of gzip that the pages may have.
 */
export function compressed(limit: number): Plugin {
  let directory = ""
  return {
    name: "compressed",
    apply: "build",
    configResolved(config) {
      directory = config.build.outDir
    },
    // Not `closeBundle`: it is called for a build that failed as well, and would hide why.
    writeBundle() {
      const names = readdirSync(directory, { recursive: true, encoding: "utf8" })
      const total = names
        .filter((name) => WORTH_IT.test(name))
        .reduce((sum, name) => sum + compress(directory, name), 0)
      this.info(`${total} bytes of gzip in all, of ${limit} allowed`)
      if (total > limit) this.error(`The pages have ${total} bytes of gzip, more than ${limit}`)
    },
  }
}

function compress(directory: string, name: string): number {
  const path = join(directory, name)
  const content = readFileSync(path)
  const gzip = gzipSync(content, { level: 9 })
  writeFileSync(`${path}.gz`, gzip)
  writeFileSync(`${path}.br`, brotliCompressSync(content))
  return gzip.length
}
