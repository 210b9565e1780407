// How far a stream has been read, and what has been seen. Pure.

import type { Frame } from "./frames.js"

/** Marks that are remembered. More than a batch holds: what came before the cursor comes again only from a broken proxy. */
const MOST_MARKS = 10_000

export class Place {
  /** The last cursor that was received; to come back with. */
  cursor: string | null
  readonly #seen = new Set<string>()

  constructor(cursor: string | null = null) {
    this.cursor = cursor
  }

  /** Notes that a frame has come; false if it had come before. */
  isNews(frame: Frame): boolean {
    if (frame.type === "snapshot" || frame.type === "reset") this.#seen.clear()
    const mark = markOf(frame)
    const known = mark !== null && this.#seen.has(mark)
    if (mark !== null && !known) this.#remember(mark)
    // Of a frame that came twice, too: the last one of a batch may be the only one that did.
    if ("cursor" in frame && frame.cursor !== undefined) this.cursor = frame.cursor
    return !known
  }

  #remember(mark: string): void {
    this.#seen.add(mark)
    if (this.#seen.size <= MOST_MARKS) return
    const [oldest] = this.#seen
    if (oldest !== undefined) this.#seen.delete(oldest)
  }
}

/** What tells a frame from all others of its stream; `null` for those that say the same each time. */
function markOf(frame: Frame): string | null {
  if (frame.type === "chunk" || frame.type === "progress") {
    // Several of them are born of one row.
    return JSON.stringify([frame.dag_id, frame.run_id, frame.task_id, frame.map_index, frame.try_number, frame.index])
  }
  return "seq" in frame && typeof frame.seq === "number" ? `${frame.type} ${frame.seq}` : null
}
