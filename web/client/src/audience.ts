// Those who listen to a stream: callbacks, and loops over its frames.

import type { StreamError } from "./errors.js"
import type { Frame } from "./frames.js"
import type { Listener } from "./types.js"

/** How a stream has ended for those who loop over it: well, or with an error. */
export interface Over {
  readonly error: StreamError | null
}

interface Reader {
  readonly frames: Frame[]
  wake: () => void
}

export class Audience<Now> {
  readonly #listeners = new Set<Listener<Now>>()
  readonly #readers = new Set<Reader>()
  #over: Over | null = null

  get size(): number {
    return this.#listeners.size + this.#readers.size
  }

  subscribe(listener: Listener<Now>): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Tells what has come; `over` when nothing comes after it. */
  tell(now: Now, frames: readonly Frame[], over: Over | null): void {
    this.#over = over
    for (const reader of this.#readers) {
      reader.frames.push(...frames)
      reader.wake()
    }
    for (const listener of [...this.#listeners]) {
      try {
        listener(now, frames)
      } catch (error) {
        // One listener's fault is no other's; it is told where uncaught errors are.
        queueMicrotask(() => {
          throw error
        })
      }
    }
  }

  /** Yields the frames from now on. `onLeft` is called when a loop is left before its end. */
  async *frames(onLeft: () => void): AsyncGenerator<Frame, void, undefined> {
    const reader: Reader = { frames: [], wake: () => {} }
    this.#readers.add(reader)
    try {
      for (;;) {
        for (let frame = reader.frames.shift(); frame !== undefined; frame = reader.frames.shift()) yield frame
        if (this.#over?.error) throw this.#over.error
        if (this.#over) return
        await new Promise<void>((resolve) => {
          reader.wake = resolve
        })
      }
    } finally {
      this.#readers.delete(reader)
      if (this.#over === null) onLeft()
    }
  }
}
