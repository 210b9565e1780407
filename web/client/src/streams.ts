// The streams that users hold: of one run, folded into a view, and of many.

import { Audience } from "./audience.js"
import { StreamError } from "./errors.js"
import type { Frame } from "./frames.js"
import { Link, type LinkOptions, type Open } from "./link.js"
import { isOver } from "./machine.js"
import type { Bookmark, Current, FrameStream, Listener, Platform, RunKey, RunStream, StreamState } from "./types.js"
import { NOTHING_KNOWN, type Outcome, type RunView, reduce } from "./view.js"

/** What all streams share: a link, and those who listen. */
abstract class Stream<Now> {
  /** Resolves when the stream is over. */
  done: Promise<void> = Promise.resolve()
  protected readonly link: Link
  readonly #audience = new Audience<Now>()

  constructor(open: Open, platform: Platform, options: LinkOptions) {
    this.link = new Link(open, platform, options, (frames) => {
      const now = this.take(frames)
      const { state, error } = this.link
      this.#audience.tell(now, frames, isOver(state) ? { error: state === "failed" ? error : null } : null)
    })
  }

  get state(): StreamState {
    return this.link.state
  }

  subscribe(listener: Listener<Now>): () => void {
    return this.#audience.subscribe(listener)
  }

  /** Leaving a loop closes the stream, if nobody else listens to it. */
  [Symbol.asyncIterator](): AsyncIterator<Frame, void, undefined> {
    return this.#audience.frames(() => {
      if (this.#audience.size === 0) this.close()
    })
  }

  close(): void {
    this.link.close()
  }

  /** Begins, and ends when the signal says so. */
  protected start(signal: AbortSignal | undefined): void {
    this.done = this.link.run()
    if (signal?.aborted) this.close()
    else signal?.addEventListener("abort", () => this.close(), { once: true })
  }

  /** Takes in what has come, and returns what listeners are told. */
  protected abstract take(frames: readonly Frame[]): Now
}

/** A stream of one run. */
export class OneRun extends Stream<Current> implements RunStream {
  current: Current
  bookmark: Bookmark | null
  readonly #started = new Promised<RunKey>()
  readonly #result = new Promised<Outcome>()

  constructor(open: Open, platform: Platform, options: LinkOptions, { bookmark, signal }: Opening) {
    super(open, platform, { ...options, cursor: bookmark?.cursor ?? null })
    this.bookmark = bookmark ?? null
    this.current = { state: this.state, view: bookmark?.view ?? NOTHING_KNOWN, error: null }
    this.#settle()
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

  /** Says which run it is. */
  begin(key: RunKey): void {
    this.#started.settle(key)
  }

  protected override take(frames: readonly Frame[]): Current {
    let { view } = this.current
    for (const frame of frames) {
      view = reduce(view, frame)
      // The view as it was there: what came after the cursor comes again.
      if ("cursor" in frame && frame.cursor !== undefined) this.bookmark = { cursor: frame.cursor, view }
    }
    this.current = { state: this.state, view, error: this.link.error }
    this.#settle()
    return this.current
  }

  #settle(): void {
    const { outcome } = this.view
    if (outcome.kind !== "pending") this.#result.settle(outcome)
    if (!isOver(this.state)) return
    const error = this.current.error ?? new StreamError("closed_by_server", "The stream ended without an outcome")
    this.#started.fail(error)
    this.#result.fail(error)
  }
}

interface Opening {
  readonly bookmark?: Bookmark
  readonly signal?: AbortSignal
}

/** A stream of many runs. */
export class ManyRuns extends Stream<FrameStream> implements FrameStream {
  constructor(open: Open, platform: Platform, options: LinkOptions, signal: AbortSignal | undefined) {
    super(open, platform, options)
    this.start(signal)
  }

  get error(): StreamError | null {
    return this.link.error
  }

  get cursor(): string | null {
    return this.link.place.cursor
  }

  protected override take(): FrameStream {
    return this
  }
}

/** A promise, and how it comes out. */
class Promised<Value> {
  readonly promise: Promise<Value>
  settle: (value: Value) => void = () => {}
  fail: (error: Error) => void = () => {}

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.settle = resolve
      this.fail = reject
    })
    // Those who do not ask for it need not hear that it failed.
    this.promise.catch(() => {})
  }
}
