// Elects one tab of a browser as the leader, by Web Locks (W3C): the browser grants a lock to one tab at a time, and
// releases it when the tab is closed, reloaded or crashes.
//
//   this tab    event                               becomes
//   candidate   the leader's lock is granted        leader
//   candidate   `takeOver`                          leader: steals the lock from a leader that does not respond
//   candidate   locks are not available after all   leader: each tab then has a connection of its own
//   leader      another tab steals the lock         candidate, at the end of the queue
//   any         `close`                             closed
//
// Besides, each tab holds a lock of its own for as long as it lives. When the leader is granted that lock, the tab is gone.

export interface ElectionOptions {
  /** Prefix of the names of the locks. */
  readonly lockName: string
  readonly tabId: string
  readonly locks: LockManager
  readonly onElected: () => void
  readonly onDismissed: () => void
}

/** Abort reason of a candidacy in the queue that is replaced by stealing the lock. */
const TAKE_OVER = "take over"

export class LeaderElection {
  isLeader = false
  /** Resolves when this tab holds its own lock. Before, the leader would treat it as gone. */
  readonly ready: Promise<void>
  readonly #options: ElectionOptions
  readonly #closing = new AbortController()
  #candidacy = new AbortController()

  constructor(options: ElectionOptions) {
    this.#options = options
    this.ready = new Promise((resolve) => {
      const lock = this.#tabLock(options.tabId)
      // Resolved in any case: locks may be unavailable.
      void this.#holdLock(lock, { signal: this.#closing.signal }, resolve).then(() => resolve())
    })
    void this.#run()
  }

  get isClosed(): boolean {
    return this.#closing.signal.aborted
  }

  /** Become the leader at once, since the present one does not respond. */
  takeOver(): void {
    this.#candidacy.abort(TAKE_OVER)
  }

  /** Call back when another tab is gone. */
  onTabGone(tabId: string, callback: () => void): void {
    const { signal } = this.#closing
    void this.#options.locks.request(this.#tabLock(tabId), { signal }, callback).catch(() => {})
  }

  close(): void {
    this.#dismiss()
    this.#closing.abort()
    this.#candidacy.abort()
  }

  async #run(): Promise<void> {
    await this.ready
    let steal = false
    while (!this.isClosed) {
      this.#candidacy = new AbortController()
      const { signal } = this.#candidacy
      // `steal` and `signal` exclude each other; a stolen lock is granted at once, so that there is no wait to abort.
      const options = steal ? { steal } : { signal }
      const wasHeld = await this.#holdLock(this.#options.lockName, options, () => this.#elect())
      this.#dismiss()
      steal = signal.reason === TAKE_OVER
      if (!wasHeld && !signal.aborted) return this.#elect()
    }
  }

  #elect(): void {
    this.isLeader = true
    this.#options.onElected()
  }

  #dismiss(): void {
    this.isLeader = false
    this.#options.onDismissed()
  }

  /** Hold a lock until `close`, or until it is stolen. Resolves then; returns whether the lock was ever granted. */
  async #holdLock(name: string, options: LockOptions, onGranted: () => void): Promise<boolean> {
    const { signal } = this.#closing
    let wasGranted = false
    // A lock is held until the promise of its callback is settled.
    const hold = () =>
      new Promise<void>((resolve) => {
        wasGranted = true
        signal.addEventListener("abort", () => resolve())
        if (signal.aborted) resolve()
        else onGranted()
      })
    await this.#options.locks.request(name, options, hold).catch(() => {})
    return wasGranted
  }

  #tabLock(tabId: string): string {
    return `${this.#options.lockName}${tabId}`
  }
}
