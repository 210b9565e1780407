// Web Locks (W3C), as much of them as tabs use: Node has none before version 24.

interface Waiting {
  readonly run: () => void
  readonly fail: (reason: unknown) => void
}

/** The locks of one browser; each tab asks through a manager of its own, which dies with it. */
export class Browser {
  readonly #queues = new Map<string, Waiting[]>()
  readonly #held = new Map<string, { release: () => void; steal: () => void; tab: object }>()

  /** Opens a tab. */
  tab(): { locks: LockManager; kill: () => void } {
    const tab = {}
    const request = (name: string, options: LockOptions, held: () => unknown) => this.#request(tab, name, options, held)
    const kill = () => {
      for (const [, lock] of [...this.#held].filter(([, { tab: owner }]) => owner === tab)) lock.release()
    }
    return { locks: { request, query: async () => ({}) } as unknown as LockManager, kill }
  }

  #request(tab: object, name: string, { signal, steal }: LockOptions, held: () => unknown): Promise<void> {
    return new Promise((resolve, reject) => {
      const run = () => {
        const over = (how: () => void) => () => {
          if (this.#held.get(name) !== lock) return
          this.#held.delete(name)
          how()
          this.#queues.get(name)?.shift()?.run()
        }
        const lock = {
          tab,
          release: over(resolve),
          steal: over(() => reject(new DOMException("Stolen", "AbortError"))),
        }
        this.#held.set(name, lock)
        void Promise.resolve(held()).then(lock.release)
      }
      if (steal) {
        // Whoever steals goes before all who wait.
        const queue = this.#queues.get(name) ?? []
        this.#queues.set(name, [])
        this.#held.get(name)?.steal()
        this.#queues.set(name, queue)
        run()
        return
      }
      if (!this.#held.has(name)) {
        run()
        return
      }
      const waiting: Waiting = { run, fail: reject }
      const queue = this.#queues.get(name) ?? []
      this.#queues.set(name, [...queue, waiting])
      signal?.addEventListener("abort", () => {
        const now = this.#queues.get(name) ?? []
        this.#queues.set(
          name,
          now.filter((one) => one !== waiting),
        )
        reject(signal.reason)
      })
    })
  }
}
