// A client for tests, and conditions to wait for; each fails after a deadline.

import {
  type Client,
  type ClientOptions,
  createClient,
  type Frame,
  type Platform,
  type RunStatus,
  type RunStream,
  type StreamState,
} from "../../src/index.js"
import { ManualClock } from "./manual_clock.js"

const DEADLINE_MS = 5_000

/** Resolves when the condition is true. It is checked after each change of the stream. */
export function waitUntil(
  stream: RunStream,
  condition: (status: RunStatus) => boolean,
  what = String(condition),
): Promise<RunStatus> {
  return new Promise((resolve, reject) => {
    const deadline = setTimeout(() => {
      unsubscribe()
      reject(new Error(`Not true within ${DEADLINE_MS} ms: ${what}; last: ${JSON.stringify(stream.current)}`))
    }, DEADLINE_MS)
    const check = (status: RunStatus) => {
      if (!condition(status)) return
      clearTimeout(deadline)
      unsubscribe()
      resolve(status)
    }
    const unsubscribe = stream.subscribe(check)
    queueMicrotask(() => check(stream.current))
  })
}

export function waitForState(stream: RunStream, state: StreamState): Promise<RunStatus> {
  return waitUntil(stream, (status) => status.state === state, `state ${state}`)
}

/** Resolves when the condition is true. It is checked in each iteration of the event loop. */
export async function eventually(condition: () => boolean, what = String(condition)): Promise<void> {
  const deadline = performance.now() + DEADLINE_MS
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`Not true within ${DEADLINE_MS} ms: ${what}`)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

/** Returns an array that grows with each frame of the stream. */
export function collectFrames(stream: RunStream): Frame[] {
  const frames: Frame[] = []
  stream.subscribe((_, newFrames) => frames.push(...newFrames))
  return frames
}

export interface TestClient {
  readonly client: Client
  readonly clock: ManualClock
  /** Simulates that the page becomes visible again. */
  readonly wake: () => void
}

/** Creates a client with a manual clock and without random delays. */
export function createTestClient(options: ClientOptions, platform: Partial<Platform> = {}): TestClient {
  const clock = new ManualClock()
  const wakes = new Set<() => void>()
  const onWake = (callback: () => void) => {
    wakes.add(callback)
    return () => wakes.delete(callback)
  }
  const testPlatform: Partial<Platform> = { clock, random: () => 0, onWake, ...platform }
  const client = createClient({ auth: "none", ...options, platform: { ...testPlatform, ...options.platform } })
  const wake = () => {
    for (const callback of [...wakes]) callback()
  }
  return { client, clock, wake }
}
