// Following streams in tests: what is waited for comes, or the test fails.

import {
  type Client,
  type ClientOptions,
  type Current,
  createClient,
  type Frame,
  type Platform,
  type RunStream,
  type StreamState,
} from "../../src/index.js"
import { StillClock } from "./clock.js"

const DEADLINE_MS = 5_000

/** Resolves when a condition is true; it is asked again whenever the stream changes. */
export function until(
  stream: RunStream,
  condition: (now: Current) => boolean,
  what = String(condition),
): Promise<Current> {
  return new Promise((resolve, reject) => {
    const deadline = setTimeout(() => {
      unsubscribe()
      reject(new Error(`Not within ${DEADLINE_MS} ms: ${what}; last: ${JSON.stringify(stream.current)}`))
    }, DEADLINE_MS)
    const check = (now: Current) => {
      if (!condition(now)) return
      clearTimeout(deadline)
      unsubscribe()
      resolve(now)
    }
    const unsubscribe = stream.subscribe(check)
    queueMicrotask(() => check(stream.current))
  })
}

export function reached(stream: RunStream, state: StreamState): Promise<Current> {
  return until(stream, (now) => now.state === state, `state ${state}`)
}

/** Resolves when a condition is true; it is asked in every turn of the event loop. */
export async function eventually(condition: () => boolean, what = String(condition)): Promise<void> {
  const deadline = performance.now() + DEADLINE_MS
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`Not within ${DEADLINE_MS} ms: ${what}`)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

/** All frames of a stream, as they come. */
export function collected(stream: RunStream): Frame[] {
  const frames: Frame[] = []
  stream.subscribe((_, news) => frames.push(...news))
  return frames
}

export interface Bench {
  readonly client: Client
  readonly clock: StillClock
  /** Shows the page again. */
  readonly wake: () => void
}

/** A client whose time stands still, and whose random waits are none. */
export function bench(options: ClientOptions, platform: Partial<Platform> = {}): Bench {
  const clock = new StillClock()
  const wakes = new Set<() => void>()
  const onWake = (callback: () => void) => {
    wakes.add(callback)
    return () => wakes.delete(callback)
  }
  const still: Partial<Platform> = { clock, random: () => 0, onWake, ...platform }
  const client = createClient({ auth: "none", ...options, platform: { ...still, ...options.platform } })
  const wake = () => {
    for (const callback of [...wakes]) callback()
  }
  return { client, clock, wake }
}
