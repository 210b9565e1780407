// A clock that stands still until a test moves it.

import type { Clock } from "../../src/index.js"

interface Timer {
  readonly due: number
  readonly callback: () => void
}

export class StillClock implements Clock {
  #now = 1_000_000
  readonly #timers = new Set<Timer>()

  now(): number {
    return this.#now
  }

  /** What is due at once happens at once, so that a random wait of nothing needs no moving. */
  after(ms: number, callback: () => void): () => void {
    if (ms <= 0) {
      const immediate = setImmediate(callback)
      return () => clearImmediate(immediate)
    }
    const timer = { due: this.#now + ms, callback }
    this.#timers.add(timer)
    return () => this.#timers.delete(timer)
  }

  /** Lets time pass. */
  elapse(ms: number): void {
    const until = this.#now + ms
    for (;;) {
      const [next] = [...this.#timers].filter(({ due }) => due <= until).sort((one, other) => one.due - other.due)
      if (next === undefined) break
      this.#timers.delete(next)
      this.#now = next.due
      next.callback()
    }
    this.#now = until
  }

  /** How long until the next timer, in milliseconds; `null` where there is none. */
  get next(): number | null {
    const dues = [...this.#timers].map(({ due }) => due - this.#now)
    return dues.length === 0 ? null : Math.min(...dues)
  }
}
