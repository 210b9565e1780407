// One stream over as many connections as it takes. The end of a connection is not the end of a stream.

import type { Ask } from "./asks.js"
import { wait } from "./backoff.js"
import { type Ending, judge } from "./endings.js"
import { StreamError } from "./errors.js"
import { FRAME_TYPES, type Frame } from "./frames.js"
import { isOver, NEXT, type StreamEvent } from "./machine.js"
import { Place } from "./place.js"
import type { Platform, StreamState } from "./types.js"

/** What a connection is asked. */
export interface Attempt {
  /** Where to go on; `null` to begin. */
  readonly cursor: string | null
  /** Whether the credential must be a new one. */
  readonly refresh: boolean
  /** Ends the connection. */
  readonly signal: AbortSignal
}

/** Hears the frames of a connection, a packet's at a time. */
export type Hear = (frames: readonly Frame[]) => void

/** Opens a connection, and says how it ended. */
export type Open = (attempt: Attempt, hear: Hear) => Promise<Ending>

/** How streams are opened. */
export interface Transport {
  open(ask: Ask): Open
  /** Whether a POST may answer with the stream itself. */
  readonly streamsPosts: boolean
  close(): void
}

export interface LinkOptions {
  readonly cursor?: string | null
  /** Whether another credential can be had when one is refused. */
  readonly renewable: boolean
  readonly patienceMs: () => number
  readonly pingIntervalMs: number
}

/** Hears what has changed: frames that are news, another state, or another error. */
export type OnChange = (frames: readonly Frame[]) => void

const KNOWN: ReadonlySet<string> = new Set(FRAME_TYPES)

/** Frames about connections, which are of no concern to those who follow a stream. */
const OURS: ReadonlySet<string> = new Set(["ping", "close", "ack", "error", "auth_expiring"])

/** Silences after which a connection is doubted, and given up, in intervals between pings. */
const STALE_AFTER = 1.5
const GIVE_UP_AFTER = 3

/** A longer interval between pings is not believed. */
const LONGEST_PING_INTERVAL_MS = 120_000

/** A connection that lasts this long was worth something, even if nothing happened. */
const LASTING_MS = 5_000

export class Link {
  state: StreamState = "connecting"
  error: StreamError | null = null
  readonly place: Place
  readonly #open: Open
  readonly #platform: Platform
  readonly #options: LinkOptions
  readonly #onChange: OnChange
  #connection = new AbortController()
  #ending: Ending | null = null
  #refreshed = false
  #failures = 0
  /** When trouble began; `null` while all is well. */
  #troubleSince: number | null = null
  #hurried = false
  #lastHeard: number
  #pingIntervalMs: number
  #skipPause: (() => void) | null = null
  #stopWatching: (() => void) | null = null

  constructor(open: Open, platform: Platform, options: LinkOptions, onChange: OnChange) {
    this.#open = open
    this.#platform = platform
    this.#options = options
    this.#onChange = onChange
    this.#pingIntervalMs = options.pingIntervalMs
    this.#lastHeard = platform.clock.now()
    this.place = new Place(options.cursor ?? null)
  }

  /** Connects, as often as it takes. Resolves when the stream is over. */
  async run(): Promise<void> {
    const stopWaking = this.#platform.onWake(() => this.#wake())
    let refresh = false
    while (!isOver(this.state)) {
      const began = this.#now()
      const cursor = this.place.cursor
      const ending = await this.#connect(refresh)
      if (isOver(this.state)) break
      const step = judge(ending, this.#options.renewable && !this.#refreshed)
      if (step.kind === "stop") this.#happened("over")
      else if (step.kind === "fail") this.#fail(step.error)
      else {
        refresh = this.#refreshed = step.refresh
        const worth = this.place.cursor !== cursor || this.#now() - began >= LASTING_MS
        this.#failures = worth ? 0 : this.#failures + 1
        await this.#comeBack(step.error, step.floorMs)
      }
    }
    stopWaking()
  }

  close(): void {
    if (isOver(this.state)) return
    this.error = new StreamError("closed", "The stream was closed")
    this.#happened("left")
    this.#hangUp()
  }

  async #connect(refresh: boolean): Promise<Ending> {
    const connection = new AbortController()
    this.#connection = connection
    this.#ending = null
    const since = this.#now()
    this.#watch(since)
    const hear: Hear = (frames) => {
      // What was on its way when we hung up is told again.
      if (!connection.signal.aborted) this.#hear(frames)
    }
    const attempt = { cursor: this.place.cursor, refresh, signal: connection.signal }
    const ending = await this.#open(attempt, hear).catch((error): Ending => ({ kind: "cut", why: String(error) }))
    this.#stopWatching?.()
    return this.#ending ?? ending
  }

  #hear(frames: readonly Frame[]): void {
    this.#heard(frames)
    const news: Frame[] = []
    for (const frame of frames) {
      if (frame.type === "close") {
        const { code, reason, reconnect, retry_ms } = frame
        this.#ending = { kind: "closed", code, reason, reconnect, retryMs: retry_ms ?? null }
        this.#hangUp()
        break
      }
      const isNews = this.place.isNews(frame)
      if (isNews && KNOWN.has(frame.type) && !OURS.has(frame.type)) news.push(frame)
      if (frame.type === "end") {
        this.#happened("over", news)
        this.#hangUp()
        return
      }
    }
    // That somebody is there does not make current what is known.
    const told = frames.some((frame) => !OURS.has(frame.type) || "cursor" in frame)
    if (told || this.state === "stale") this.#happened("heard", news)
  }

  #heard(frames: readonly Frame[]): void {
    const now = this.#now()
    const silence = now - this.#lastHeard
    this.#lastHeard = now
    this.#troubleSince = null
    this.#refreshed = false
    this.error = null
    // The server's interval may be longer than we were told.
    if (frames[0]?.type === "ping" && this.state !== "connecting" && this.state !== "resuming") {
      this.#expectPingsEvery(silence)
    }
  }

  #expectPingsEvery(ms: number): void {
    this.#pingIntervalMs = Math.min(Math.max(this.#pingIntervalMs, ms), LONGEST_PING_INTERVAL_MS)
  }

  /** Doubts the connection after a silence, and gives it up after a longer one. */
  #watch(since: number, intervals = STALE_AFTER): void {
    const last = Math.max(since, this.#lastHeard)
    const due = last + intervals * this.#pingIntervalMs
    this.#stopWatching = this.#platform.clock.after(Math.max(0, due - this.#now()), () => {
      if (Math.max(since, this.#lastHeard) > last) this.#watch(since)
      else if (intervals === STALE_AFTER) {
        this.#happened("silent")
        this.#watch(since, GIVE_UP_AFTER)
      } else {
        // Perhaps the server's pings are further apart than we believe; then this must not go on for ever.
        this.#expectPingsEvery(2 * this.#pingIntervalMs)
        this.#giveUp("Nothing was heard for too long")
      }
    })
  }

  #giveUp(why: string): void {
    this.#ending = { kind: "cut", why }
    this.#hangUp()
  }

  #hangUp(): void {
    this.#connection.abort()
    this.#skipPause?.()
  }

  async #comeBack(error: StreamError, floorMs: number | null): Promise<void> {
    this.#troubleSince ??= this.#now()
    if (this.#now() - this.#troubleSince > this.#options.patienceMs()) {
      this.#fail(new StreamError("lost", `Given up: ${error.message}`, error.status, { cause: error }))
      return
    }
    this.error = error
    this.#happened("cut")
    await this.#pause(floorMs)
  }

  /** Waits before another attempt. Who is woken does not wait, but for as long as the server asks for. */
  #pause(floorMs: number | null): Promise<void> {
    const { clock, random } = this.#platform
    const ms = wait(this.#failures, floorMs, this.#hurried ? 0 : random())
    const floor = this.#now() + wait(0, floorMs, 0)
    this.#hurried = false
    return new Promise((resolve) => {
      const cancel = clock.after(ms, () => go())
      const go = () => {
        cancel()
        this.#skipPause = null
        resolve()
      }
      this.#skipPause = () => {
        if (isOver(this.state) || this.#now() >= floor) go()
      }
    })
  }

  /** The page is shown again, or the network is back: a connection that missed a ping is not trusted any more. */
  #wake(): void {
    this.#skipPause?.()
    if (!this.#connection.signal.aborted && this.#now() - this.#lastHeard > this.#pingIntervalMs) {
      this.#hurried = true
      this.#giveUp("The page slept")
    }
  }

  #fail(error: StreamError): void {
    this.error = error
    this.#happened("refused")
  }

  #happened(event: StreamEvent, frames: readonly Frame[] = []): void {
    const before = this.state
    this.state = NEXT[before][event]
    if (event === "over") this.error = null
    if (frames.length > 0 || this.state !== before || event === "cut") this.#onChange(frames)
  }

  #now(): number {
    return this.#platform.clock.now()
  }
}
