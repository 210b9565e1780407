// A clock that only advances when a test does so.

import type { Clock } from "../../src/index.js"

interface Timer {
  readonly due: number
  readonly callback: () => void
}

export class ManualClock implements Clock {
  #now = 1_000_000
  readonly #timers = new Set<Timer>()

  now(): number {
    return this.#now
  }

  /** A timer of 0 ms needs no `advance`: it is the usual delay before a reconnect in tests. */
  after(ms: number, callback: () => void): () => void {
    if (ms <= 0) {
      const immediate = setImmediate(callback)
      return () => clearImmediate(immediate)
    }
    const timer = { due: this.#now + ms, callback }
    this.#timers.add(timer)
    return () => this.#timers.delete(timer)
  }

  advance(ms: number): void {
    const until = this.#now + ms
    for (;;) {
      const [msUntilNextTimer] = [...this.#timers]
        .filter(({ due }) => due <= until)
        .sort((one, other) => one.due - other.due)
      if (msUntilNextTimer === undefined) break
      this.#timers.delete(msUntilNextTimer)
      this.#now = msUntilNextTimer.due
      msUntilNextTimer.callback()
    }
    this.#now = until
  }

  /** `null` without timers. */
  get next(): number | null {
    const dues = [...this.#timers].map(({ due }) => due - this.#now)
    return dues.length === 0 ? null : Math.min(...dues)
  }
}
