import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { brotliCompressSync, gzipSync } from "node:zlib"
import type { Plugin } from "vite"

const COMPRESSIBLE = /\.(css|html|js|svg)$/

/**
 * A Vite plugin that writes a gzip and a Brotli version of each file, and fails if their total size is too large.
 *
 * @param limit maximum of gzip bytes of all files
 */
export function compressFiles(limit: number): Plugin {
  let directory = ""
  return {
    name: "compress-files",
    apply: "build",
    configResolved(config) {
      directory = config.build.outDir
    },
    // Not `closeBundle`: Vite calls it after a failed build, too, and an error here would hide the cause.
    writeBundle() {
      const names = readdirSync(directory, { recursive: true, encoding: "utf8" })
      const total = names
        .filter((name) => COMPRESSIBLE.test(name))
        .reduce((sum, name) => sum + compress(directory, name), 0)
      this.info(`${total} bytes of gzip in all, of ${limit} allowed`)
      if (total > limit) this.error(`The pages have ${total} bytes of gzip; the limit is ${limit}`)
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
