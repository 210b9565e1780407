// How long to wait before the next attempt to connect. Pure.

const FIRST_DELAY_MS = 500
const MAX_DELAY_MS = 30_000

/** Longer minimum delays are not honoured. `setTimeout` fires at once when its delay exceeds 2^31 ms. */
const MAX_MIN_DELAY_MS = 3_600_000

/**
 * Return a random delay that grows with each failure ("full jitter"), added to the server's minimum: clients that were
 * disconnected together must not reconnect together.
 *
 * @param failures consecutive attempts that failed
 * @param minDelayMs minimum that the server requires, if any
 * @param random from 0 to below 1
 */
export function computeBackoff(failures: number, minDelayMs: number | null, random: number): number {
  const min = Math.min(Math.max(minDelayMs || 0, 0), MAX_MIN_DELAY_MS)
  return min + random * Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(Math.max(failures - 1, 0), 16))
}
