// The streams that the client returns: of one run, folded into a view, and of many runs.

import { StreamError } from "../errors.js"
import type { Frame } from "../protocol/frames.js"
import { EMPTY_VIEW, type Outcome, type RunView, reduce } from "../run_view.js"
import type { Connector } from "../transport/transport.js"
import type { Bookmark, FrameStream, Listener, Platform, RunKey, RunStatus, RunStream, StreamState } from "../types.js"
import { isFinal } from "./connection_state.js"
import { ReconnectingConnection, type ReconnectOptions } from "./reconnection.js"
import { Subscribers } from "./subscribers.js"

/** A stream with listeners. `Status` is what the listeners receive. */
abstract class SubscribableStream<Status> {
  /** Resolves when the stream is over. */
  done: Promise<void> = Promise.resolve()
  protected readonly connection: ReconnectingConnection
  readonly #subscribers = new Subscribers<Status>()

  constructor(connector: Connector, platform: Platform, options: ReconnectOptions) {
    this.connection = new ReconnectingConnection(connector, platform, options, (frames) => {
      const status = this.update(frames)
      const { state, error } = this.connection
      const end = isFinal(state) ? { error: state === "failed" ? error : null } : null
      this.#subscribers.notify(status, frames, end)
    })
  }

  get state(): StreamState {
    return this.connection.state
  }

  subscribe(listener: Listener<Status>): () => void {
    return this.#subscribers.subscribe(listener)
  }

  /** A loop that is left closes the stream, unless it has other subscribers. */
  [Symbol.asyncIterator](): AsyncIterator<Frame, void, undefined> {
    return this.#subscribers.iterateFrames(() => {
      if (this.#subscribers.size === 0) this.close()
    })
  }

  close(): void {
    this.connection.close()
  }

  protected start(signal: AbortSignal | undefined): void {
    this.done = this.connection.run()
    if (signal?.aborted) this.close()
    else signal?.addEventListener("abort", () => this.close(), { once: true })
  }

  /** Apply new frames; returns the status that listeners receive. */
  protected abstract update(frames: readonly Frame[]): Status
}

interface SingleRunOptions {
  readonly bookmark?: Bookmark
  readonly signal?: AbortSignal
}

export class SingleRunStream extends SubscribableStream<RunStatus> implements RunStream {
  current: RunStatus
  bookmark: Bookmark | null
  readonly #started = new Deferred<RunKey>()
  readonly #result = new Deferred<Outcome>()

  constructor(
    connector: Connector,
    platform: Platform,
    options: ReconnectOptions,
    { bookmark, signal }: SingleRunOptions,
  ) {
    super(connector, platform, { ...options, cursor: bookmark?.cursor ?? null })
    this.bookmark = bookmark ?? null
    this.current = { state: this.state, view: bookmark?.view ?? EMPTY_VIEW, error: null }
    this.#settlePromises()
    this.start(signal)
  }

  get view(): RunView {
    return this.current.view
  }

  get started(): Promise<RunKey> {
    return this.#started.promise
  }

  get result(): Promise<Outcome> {
    return this.#result.promise
  }

  setRun(key: RunKey): void {
    this.#started.resolve(key)
  }

  protected override update(frames: readonly Frame[]): RunStatus {
    let { view } = this.current
    for (const frame of frames) {
      view = reduce(view, frame)
      // The view at the cursor, not the newest one: frames after the cursor are sent again to a stream that resumes.
      if ("cursor" in frame && frame.cursor !== undefined) this.bookmark = { cursor: frame.cursor, view }
    }
    this.current = { state: this.state, view, error: this.connection.error }
    this.#settlePromises()
    return this.current
  }

  #settlePromises(): void {
    const { outcome } = this.view
    if (outcome.kind !== "pending") this.#result.resolve(outcome)
    if (!isFinal(this.state)) return
    const error = this.current.error ?? new StreamError("closed_by_server", "The stream ended without an outcome")
    this.#started.reject(error)
    this.#result.reject(error)
  }
}

export class MultiRunStream extends SubscribableStream<FrameStream> implements FrameStream {
  constructor(connector: Connector, platform: Platform, options: ReconnectOptions, signal: AbortSignal | undefined) {
    super(connector, platform, options)
    this.start(signal)
  }

  get error(): StreamError | null {
    return this.connection.error
  }

  get cursor(): string | null {
    return this.connection.position.cursor
  }

  protected override update(): FrameStream {
    return this
  }
}

/** A promise that is settled from outside. Later calls have no effect. */
class Deferred<Value> {
  readonly promise: Promise<Value>
  resolve: (value: Value) => void = () => {}
  reject: (error: Error) => void = () => {}

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve
      this.reject = reject
    })
    // A caller that does not use the promise must not get an unhandled rejection.
    this.promise.catch(() => {})
  }
}
