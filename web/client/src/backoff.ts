// How long to wait before another attempt. Pure.

const FIRST_MS = 500
const LONGEST_MS = 30_000

/** No server may send a client away for longer; timers can't hold what is much longer, and would fire at once. */
const LONGEST_FLOOR_MS = 3_600_000

/**
 * Returns a random wait that grows as long as attempts fail, on top of what the server asks for: clients that were cut
 * together, or sent away together, must not come back together ("full jitter").
 *
 * @param failures attempts that came to nothing, one after the other
 * @param floorMs what the server asks for; `null` where it asks for nothing
 * @param random from 0 to below 1
 */
export function wait(failures: number, floorMs: number | null, random: number): number {
  const floor = Math.min(Math.max(floorMs || 0, 0), LONGEST_FLOOR_MS)
  return floor + random * Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(Math.max(failures - 1, 0), 16))
}

/**
 * Reads the header `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date.
 *
 * @returns milliseconds; `null` where it says nothing that can be read
 */
export function retryAfterMs(header: string | null, epochMs: number): number | null {
  if (header === null) return null
  if (/^\d+$/.test(header)) return Number(header) * 1000
  const date = Date.parse(header)
  return Number.isNaN(date) ? null : Math.max(0, date - epochMs)
}
