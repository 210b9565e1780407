// A stream that is open while somebody listens: what React's `useSyncExternalStore` asks for.

import {
  type Bookmark,
  type Client,
  type Current,
  NOTHING_KNOWN,
  type Question,
  type RunStream,
  StreamError,
} from "airflow-stream-client"

/** Before there is a run, or anybody who listens. */
const NOT_BEGUN: Current = { state: "connecting", view: NOTHING_KNOWN, error: null }

/** Opens a stream, from where an earlier one had come. */
export type Begin = (bookmark: Bookmark | null) => RunStream

export class RunStore {
  readonly #begin: Begin
  readonly #listeners = new Set<() => void>()
  #stream: RunStream | null = null
  #bookmark: Bookmark | null = null
  #current = NOT_BEGUN

  constructor(begin: Begin) {
    this.#begin = begin
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener)
    if (this.#stream === null) this.#open()
    return () => {
      this.#listeners.delete(listener)
      // React's strict mode leaves, and is back at once.
      queueMicrotask(() => {
        if (this.#listeners.size === 0) this.#close()
      })
    }
  }

  readonly getCurrent = (): Current => this.#current

  /** Begins again where a stream that failed had come: after a sign-in, for example. */
  readonly again = (): void => {
    if (this.#current.state !== "failed") return
    this.#close()
    if (this.#listeners.size > 0) this.#open()
  }

  #open(): void {
    const stream = this.#begin(this.#bookmark)
    this.#stream = stream
    stream.subscribe((current) => this.#show(current))
    this.#show(stream.current)
  }

  #close(): void {
    const stream = this.#stream
    this.#stream = null
    if (stream === null) return
    this.#bookmark = stream.bookmark
    stream.close()
  }

  #show(current: Current): void {
    // That it was closed, since nobody listened, need not be shown to whoever listens next.
    if (this.#stream === null) return
    this.#current = current
    for (const listener of [...this.#listeners]) listener()
  }
}

/** Returns a store of a run's stream. */
export function storeOf(client: Client, dagId: string, runId: string, question: Question): RunStore {
  return new RunStore((bookmark) =>
    client.watch(dagId, runId, bookmark === null ? question : { ...question, bookmark }),
  )
}

/** A store of no run. */
export const NO_RUN = {
  subscribe: () => () => {},
  getCurrent: () => NOT_BEGUN,
  again: () => {},
}

/** Returns what went wrong, in words. */
export function inWords(error: unknown): string {
  return error instanceof StreamError || error instanceof Error ? error.message : String(error)
}
