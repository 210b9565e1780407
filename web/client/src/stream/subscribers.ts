// Delivers the frames of a stream to its listeners and to `for await` loops.

import type { StreamError } from "../errors.js"
import type { Frame } from "../protocol/frames.js"
import type { Listener } from "../types.js"

/** The end of a stream; `error` is set if loops should throw. */
export interface StreamEnd {
  readonly error: StreamError | null
}

interface FrameQueue {
  readonly frames: Frame[]
  wake: () => void
}

export class Subscribers<Status> {
  readonly #listeners = new Set<Listener<Status>>()
  readonly #queues = new Set<FrameQueue>()
  #end: StreamEnd | null = null

  get size(): number {
    return this.#listeners.size + this.#queues.size
  }

  subscribe(listener: Listener<Status>): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** @param end not `null` if nothing follows */
  notify(status: Status, frames: readonly Frame[], end: StreamEnd | null): void {
    this.#end = end
    for (const queue of this.#queues) {
      queue.frames.push(...frames)
      queue.wake()
    }
    for (const listener of [...this.#listeners]) {
      try {
        listener(status, frames)
      } catch (error) {
        // A listener that throws must not affect the others. The error is reported as an uncaught one.
        queueMicrotask(() => {
          throw error
        })
      }
    }
  }

  /** Yield the frames from now on. `onLeave` is called when a loop is left before the end of the stream. */
  async *iterateFrames(onLeave: () => void): AsyncGenerator<Frame, void, undefined> {
    const queue: FrameQueue = { frames: [], wake: () => {} }
    this.#queues.add(queue)
    try {
      for (;;) {
        for (let frame = queue.frames.shift(); frame !== undefined; frame = queue.frames.shift()) yield frame
        if (this.#end?.error) throw this.#end.error
        if (this.#end) return
        await new Promise<void>((resolve) => {
          queue.wake = resolve
        })
      }
    } finally {
      this.#queues.delete(queue)
      if (this.#end === null) onLeave()
    }
  }
}
