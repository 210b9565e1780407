// The part of Web Locks (W3C) that shared connections use. Node has none before version 24.

interface PendingRequest {
  readonly run: () => void
  readonly fail: (reason: unknown) => void
}

/** A browser with tabs that share locks. Each tab has a LockManager; `kill` releases its locks, as a crash does. */
export class FakeBrowser {
  readonly #queues = new Map<string, PendingRequest[]>()
  readonly #held = new Map<string, { release: () => void; steal: () => void; tab: object }>()

  openTab(): { locks: LockManager; kill: () => void } {
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
        const releaseBy = (settle: () => void) => () => {
          if (this.#held.get(name) !== lock) return
          this.#held.delete(name)
          settle()
          this.#queues.get(name)?.shift()?.run()
        }
        const lock = {
          tab,
          release: releaseBy(resolve),
          steal: releaseBy(() => reject(new DOMException("Stolen", "AbortError"))),
        }
        this.#held.set(name, lock)
        void Promise.resolve(held()).then(lock.release)
      }
      if (steal) {
        // A stolen lock is granted before the requests in the queue.
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
      const pending: PendingRequest = { run, fail: reject }
      const queue = this.#queues.get(name) ?? []
      this.#queues.set(name, [...queue, pending])
      signal?.addEventListener("abort", () => {
        const now = this.#queues.get(name) ?? []
        this.#queues.set(
          name,
          now.filter((one) => one !== pending),
        )
        reject(signal.reason)
      })
    })
  }
}
