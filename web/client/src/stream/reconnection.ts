// Keeps one stream open over any number of connections: reconnects, resumes, and detects silent connections.
//
// The end of a connection is not the end of a stream. `run` is the only loop:
//
//   connect ──▶ receive frames ──▶ decide (reconnect_decision.ts) ──▶ stop, fail
//      ▲                                     │
//      └──── wait (backoff.ts) ◀─────────────┘
//
// States and events: connection_state.ts.

import { StreamError } from "../errors.js"
import { FRAME_TYPES, type Frame } from "../protocol/frames.js"
import { type ConnectionEnd, type Connector, DEAD, lost, type OnFrames } from "../transport/transport.js"
import type { Platform, StreamState } from "../types.js"
import { computeBackoff } from "./backoff.js"
import { isFinal, NEXT_STATE, type StreamEvent } from "./connection_state.js"
import { decideNextStep } from "./reconnect_decision.js"
import { ResumePosition } from "./resume_position.js"

export interface ReconnectOptions {
  readonly cursor?: string | null
  /** Whether a new credential can be obtained when one is refused. */
  readonly canRenew: boolean
  readonly giveUpAfterMs: () => number
  readonly pingIntervalMs: number
}

/** Called with new frames, and after changes of the state or the error; `frames` may be empty. */
export type OnChange = (frames: readonly Frame[]) => void

const KNOWN_TYPES: ReadonlySet<string> = new Set(FRAME_TYPES)

/** Types of frames about the connection. Callers do not receive them. */
const CONNECTION_TYPES: ReadonlySet<string> = new Set(["ping", "close", "ack", "error", "auth_expiring"])

/** Ping intervals without a frame after which a connection is stale, and after which it is replaced. */
const STALE_AFTER = 1.5
const REPLACE_AFTER = 3

/** After the page wakes up, a connection is trusted if it was made, or a frame has arrived, within this time. */
const TRUSTED_MS = 1_000

const MAX_PING_INTERVAL_MS = 120_000

/** A connection that lasts this long counts as a success, even without a new cursor. */
const STABLE_AFTER_MS = 5_000

export class ReconnectingConnection {
  state: StreamState = "connecting"
  error: StreamError | null = null
  readonly position: ResumePosition
  readonly #connector: Connector
  readonly #platform: Platform
  readonly #options: ReconnectOptions
  readonly #onChange: OnChange
  #connection = new AbortController()
  /** Why this side closed the connection; more precise than what the connector returns after an abort. */
  #end: ConnectionEnd | null = null
  /** Whether the last attempt used a new credential. It is not renewed twice in a row without a frame in between. */
  #isRefreshed = false
  #failures = 0
  /** When the first of the current failures occurred; `null` after a frame. */
  #failingSince: number | null = null
  /** Whether the next attempt starts without a random delay. */
  #isUrgent = false
  #connectedAt = 0
  #lastFrameAt: number
  #pingIntervalMs: number
  #endWait: (() => void) | null = null
  #cancelWatchdog: (() => void) | null = null

  constructor(connector: Connector, platform: Platform, options: ReconnectOptions, onChange: OnChange) {
    this.#connector = connector
    this.#platform = platform
    this.#options = options
    this.#onChange = onChange
    this.#pingIntervalMs = options.pingIntervalMs
    this.#lastFrameAt = platform.clock.now()
    this.position = new ResumePosition(options.cursor ?? null)
  }

  /** Connect until the stream is over. Resolves then. */
  async run(): Promise<void> {
    const stopListening = this.#platform.onWake(() => this.#handleWake())
    let refresh = false
    while (!isFinal(this.state)) {
      const startedAt = this.#now()
      const cursor = this.position.cursor
      const end = await this.#connect(refresh)
      if (isFinal(this.state)) break
      const step = decideNextStep(end, this.#options.canRenew && !this.#isRefreshed)
      if (step.kind === "stop") this.#handle("ended")
      else if (step.kind === "fail") this.#fail(step.error)
      else {
        refresh = this.#isRefreshed = step.refresh
        // Progress, not a mere connection, resets the backoff: a server that accepts and drops at once is failing.
        const hasProgressed = this.position.cursor !== cursor || this.#now() - startedAt >= STABLE_AFTER_MS
        this.#failures = hasProgressed ? 0 : this.#failures + 1
        await this.#prepareReconnect(step.error, step.minDelayMs)
      }
    }
    stopListening()
  }

  close(): void {
    if (isFinal(this.state)) return
    this.error = new StreamError("closed", "The stream was closed")
    this.#handle("closed")
    this.#abort()
  }

  async #connect(refresh: boolean): Promise<ConnectionEnd> {
    const connection = new AbortController()
    this.#connection = connection
    this.#end = null
    this.#connectedAt = this.#now()
    this.#startWatchdog(this.#connectedAt)
    const onFrames: OnFrames = (frames) => {
      // Frames that arrive after an abort are ignored; the next connection receives them again.
      if (!connection.signal.aborted) this.#receive(frames)
    }
    const options = { cursor: this.position.cursor, refresh, signal: connection.signal }
    const end = await this.#connector(options, onFrames).catch((error) => lost(String(error)))
    this.#cancelWatchdog?.()
    return this.#end ?? end
  }

  #receive(frames: readonly Frame[]): void {
    this.#recordActivity(frames)
    const newFrames: Frame[] = []
    for (const frame of frames) {
      if (frame.type === "close") {
        const { code, reason, reconnect, retry_ms } = frame
        this.#end = { kind: "closed", code, reason, reconnect, retryMs: retry_ms ?? null }
        this.#abort()
        break
      }
      // Frames of unknown types are recorded, too: their cursors count.
      const isNew = this.position.record(frame)
      if (isNew && KNOWN_TYPES.has(frame.type) && !CONNECTION_TYPES.has(frame.type)) newFrames.push(frame)
      if (frame.type === "end") {
        this.#handle("ended", newFrames)
        this.#abort()
        return
      }
    }
    // A ping on a new connection does not make the stream live: the view may be out of date until `resumed` or a
    // snapshot arrives. An empty group, which only a leading tab sends, does not either.
    const isCurrent = frames.some((frame) => !CONNECTION_TYPES.has(frame.type) || "cursor" in frame)
    if (isCurrent || this.state === "stale") this.#handle("received", newFrames)
  }

  #recordActivity(frames: readonly Frame[]): void {
    const now = this.#now()
    const silence = now - this.#lastFrameAt
    this.#lastFrameAt = now
    this.#failingSince = null
    this.#isRefreshed = false
    this.error = null
    // The server's interval may be longer than configured here. A ping follows a silence of one interval.
    if (frames[0]?.type === "ping" && this.state !== "connecting" && this.state !== "resuming") {
      this.#raisePingInterval(silence)
    }
  }

  #raisePingInterval(ms: number): void {
    this.#pingIntervalMs = Math.min(Math.max(this.#pingIntervalMs, ms), MAX_PING_INTERVAL_MS)
  }

  /** Mark the connection as stale after a silence, and replace it after a longer one. */
  #startWatchdog(since: number, intervals = STALE_AFTER): void {
    const last = Math.max(since, this.#lastFrameAt)
    const dueAt = last + intervals * this.#pingIntervalMs
    // One timer at a time, which checks on expiry whether a frame arrived: cheaper than a new timer for each frame.
    this.#cancelWatchdog = this.#platform.clock.after(Math.max(0, dueAt - this.#now()), () => {
      if (Math.max(since, this.#lastFrameAt) > last) this.#startWatchdog(since)
      else if (intervals === STALE_AFTER) {
        this.#handle("silent")
        this.#startWatchdog(since, REPLACE_AFTER)
      } else {
        // If the server pings less often than this, each connection would be replaced before its first ping.
        this.#raisePingInterval(2 * this.#pingIntervalMs)
        this.#abandon("No frame arrived for too long")
      }
    })
  }

  /** Replace a connection that is assumed to be dead. */
  #abandon(reason: string): void {
    this.#end = lost(reason)
    this.#abort(DEAD)
  }

  /** Abort the connection, or the wait before the next one. */
  #abort(reason?: typeof DEAD): void {
    this.#connection.abort(reason)
    this.#endWait?.()
  }

  async #prepareReconnect(error: StreamError, minDelayMs: number | null): Promise<void> {
    this.#failingSince ??= this.#now()
    if (this.#now() - this.#failingSince > this.#options.giveUpAfterMs()) {
      this.#fail(new StreamError("lost", `Given up: ${error.message}`, error.status, { cause: error }))
      return
    }
    this.error = error
    this.#handle("disconnected")
    await this.#wait(minDelayMs)
  }

  /** Wait before the next attempt. A wake event ends the wait early, but not before the server's minimum. */
  #wait(minDelayMs: number | null): Promise<void> {
    const { clock, random } = this.#platform
    const ms = computeBackoff(this.#failures, minDelayMs, this.#isUrgent ? 0 : random())
    const earliest = this.#now() + computeBackoff(0, minDelayMs, 0)
    this.#isUrgent = false
    return new Promise((resolve) => {
      const cancel = clock.after(ms, () => finish())
      const finish = () => {
        cancel()
        this.#endWait = null
        resolve()
      }
      this.#endWait = () => {
        if (isFinal(this.state) || this.#now() >= earliest) finish()
      }
    })
  }

  /**
   * The page is visible again, or the network is back. Meanwhile the connection may have died without an event. So it is
   * replaced, which costs little: the cursor is known.
   */
  #handleWake(): void {
    const isOpen = this.#endWait === null && !this.#connection.signal.aborted
    this.#endWait?.()
    if (isOpen && this.#now() - Math.max(this.#lastFrameAt, this.#connectedAt) >= TRUSTED_MS) {
      this.#isUrgent = true
      this.#abandon("The page was suspended")
    }
  }

  #fail(error: StreamError): void {
    this.error = error
    this.#handle("failed")
  }

  #handle(event: StreamEvent, frames: readonly Frame[] = []): void {
    const before = this.state
    this.state = NEXT_STATE[before][event]
    if (event === "ended") this.error = null
    // After each lost connection, even if the state stays the same: the error is a new one.
    if (frames.length > 0 || this.state !== before || event === "disconnected") this.#onChange(frames)
  }

  #now(): number {
    return this.#platform.clock.now()
  }
}
