// A store for React's `useSyncExternalStore`: its stream is open while the store has subscribers.
//
//   event                                        what follows
//   first subscriber                             open a stream, from the bookmark if there is one
//   last subscriber leaves                       keep the bookmark, close the stream
//   `resume`, the stream has failed              close it, and open another from the bookmark

import {
  type Bookmark,
  type Client,
  EMPTY_VIEW,
  type OutcomeOptions,
  type RunStatus,
  type RunStream,
} from "airflow-stream-client"

/** The status without a run, or before the first subscriber. */
const INITIAL_STATUS: RunStatus = { state: "connecting", view: EMPTY_VIEW, error: null }

export type OpenStream = (bookmark: Bookmark | null) => RunStream

export class RunStreamStore {
  readonly #openStream: OpenStream
  readonly #listeners = new Set<() => void>()
  #stream: RunStream | null = null
  #bookmark: Bookmark | null = null
  #status = INITIAL_STATUS

  constructor(openStream: OpenStream) {
    this.#openStream = openStream
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener)
    if (this.#stream === null) this.#open()
    return () => {
      this.#listeners.delete(listener)
      // Later, since React's strict mode unsubscribes and subscribes again at once.
      queueMicrotask(() => {
        if (this.#listeners.size === 0) this.#close()
      })
    }
  }

  readonly getStatus = (): RunStatus => this.#status

  /** Continue a stream that has failed, for example after the user has signed in. */
  readonly resume = (): void => {
    if (this.#status.state !== "failed") return
    this.#close()
    if (this.#listeners.size > 0) this.#open()
  }

  #open(): void {
    const stream = this.#openStream(this.#bookmark)
    this.#stream = stream
    stream.subscribe((status) => this.#setStatus(status))
    this.#setStatus(stream.current)
  }

  #close(): void {
    const stream = this.#stream
    this.#stream = null
    if (stream === null) return
    this.#bookmark = stream.bookmark
    stream.close()
  }

  #setStatus(status: RunStatus): void {
    // `#close` causes the status `closed`. The next subscriber should see the last status before.
    if (this.#stream === null) return
    this.#status = status
    for (const listener of [...this.#listeners]) listener()
  }
}

export function createRunStore(client: Client, dagId: string, runId: string, options: OutcomeOptions): RunStreamStore {
  return new RunStreamStore((bookmark) =>
    client.watch(dagId, runId, bookmark === null ? options : { ...options, bookmark }),
  )
}

/** The store while there is no run. */
export const EMPTY_STORE = {
  subscribe: () => () => {},
  getStatus: () => INITIAL_STATUS,
  resume: () => {},
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
