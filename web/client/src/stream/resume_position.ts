// Where a stream resumes after a lost connection, and which frames it has already received. Pure.

import type { Frame } from "../protocol/frames.js"

/**
 * More than a batch has. The server repeats only frames after the last cursor, so that older keys are not needed,
 * except behind a proxy that replays responses.
 */
const MAX_KEYS = 10_000

export class ResumePosition {
  /** The last cursor received; the server resumes after it. */
  cursor: string | null
  readonly #receivedKeys = new Set<string>()

  constructor(cursor: string | null = null) {
    this.cursor = cursor
  }

  /** Record a frame; returns whether it is new. */
  record(frame: Frame): boolean {
    // After these two frames, the server sends what it has sent before, with the same keys.
    if (frame.type === "snapshot" || frame.type === "reset") this.#receivedKeys.clear()
    const key = keyOf(frame)
    const isKnown = key !== null && this.#receivedKeys.has(key)
    if (key !== null && !isKnown) this.#remember(key)
    // A repeated frame moves the cursor, too: the rest of its batch may have been lost, and only this one has a cursor.
    if ("cursor" in frame && frame.cursor !== undefined) this.cursor = frame.cursor
    return !isKnown
  }

  #remember(key: string): void {
    this.#receivedKeys.add(key)
    if (this.#receivedKeys.size <= MAX_KEYS) return
    // A Set iterates in the order of insertion.
    const [oldest] = this.#receivedKeys
    if (oldest !== undefined) this.#receivedKeys.delete(oldest)
  }
}

/** Return what identifies a frame in its stream; `null` for frames without an identity, which are harmless when repeated. */
function keyOf(frame: Frame): string | null {
  if ("index" in frame) {
    // Output of a task: one journal row contains several frames, with the same `seq`.
    const { dag_id, run_id, task_id, map_index, iteration, try_number, index } = frame
    return JSON.stringify([dag_id, run_id, task_id, map_index, iteration, try_number, index])
  }
  return "seq" in frame && typeof frame.seq === "number" ? `${frame.type} ${frame.seq}` : null
}
