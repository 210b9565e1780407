// What users of the client give and get.

import type { StreamError } from "./errors.js"
import type { Frame } from "./frames.js"
import type { Outcome, RunView } from "./view.js"

/**
 * Who asks.
 *
 * - `"cookie"`: the browser's cookies go along, as Airflow's login sets them. The default.
 * - `{ bearer }`: a token, or what gives one. It goes into the header `Authorization`, and over a WebSocket into its first
 *   message; never into an address.
 * - `{ ticket }`: what gives a ticket for the paths, each time a connection is opened: from your own backend, which asks
 *   `POST /api/v2/stream/tickets` for it. The browser then never holds a token. Tickets open streams alone: what triggers
 *   and cancels goes with the browser's cookies.
 * - `"none"`: nobody; for servers that ask nobody.
 */
export type Auth =
  | "cookie"
  | "none"
  | { readonly bearer: string | BearerSource }
  | { readonly ticket: (paths: readonly string[]) => string | Promise<string> }

/** Gives a token; where `refresh` is true, the last one was refused or is about to expire. */
export type BearerSource = (refresh: boolean) => string | Promise<string>

/**
 * How frames come.
 *
 * - `"sse"`: a request for each stream. The default; at most six at a time to a host without HTTP/2.
 * - `"websocket"`: a WebSocket for each stream.
 * - `"multiplex"`: one WebSocket for all streams of the client.
 *
 * Where WebSockets do not get through, the stream goes on over SSE from where it was.
 */
export type TransportName = "sse" | "websocket" | "multiplex"

export interface ClientOptions {
  /** Address of the server, such as `https://airflow.example.com`; by default where the page comes from. */
  readonly baseUrl?: string
  readonly auth?: Auth
  readonly transport?: TransportName
  /**
   * Share one connection among all tabs of a browser that were given the same name; it implies `"multiplex"`. One name
   * for each signed-in person: all tabs see with the rights of the one that holds the connection. Without Web Locks or
   * BroadcastChannel each tab has a connection of its own.
   */
  readonly shareAs?: string
  /** How long to go on trying while nothing answers, in milliseconds; without end by default. */
  readonly patienceMs?: number
  /** The server's interval between pings, in milliseconds; 15,000. A longer one is found out. */
  readonly pingIntervalMs?: number
  /** The browser, or what stands for it. */
  readonly platform?: Partial<Platform>
}

/** What a stream is asked. */
export interface Question {
  /** Tasks whose return values are the answer; by default those that the DAG's author meant. */
  readonly result?: readonly string[]
  /** `"result"` (default): the stream ends with the outcome. `"run"`: it goes on to the end of the run. */
  readonly until?: "result" | "run"
  /** `"push"` (default): a result is told when its value is there. `"success"`: when its task has succeeded, too. */
  readonly confirm?: "push" | "success"
}

export interface WatchOptions extends Question {
  /** Where an earlier stream with the same question had come, to go on from there. */
  readonly bookmark?: Bookmark
  /** Closes the stream. */
  readonly signal?: AbortSignal
}

/** What Airflow's endpoint takes, and how the call is to be. */
export interface RunOptions extends Question {
  readonly dagRunId?: string
  readonly logicalDate?: string | null
  readonly note?: string
  /** `"attach"`: a `dagRunId` that is there already is as good as a new one. */
  readonly ifExists?: "fail" | "attach"
  /** `"cancel"`: the run is stopped when nobody watches it any more. Over SSE only. */
  readonly onDisconnect?: "continue" | "cancel"
  /** Stands for this call, so that trying again cannot trigger twice; made up by default. */
  readonly idempotencyKey?: string
  readonly signal?: AbortSignal
}

/** What transitions of many runs are let through; each list may hold 100 names. */
export interface Filter {
  readonly dagId?: readonly string[]
  readonly runId?: readonly string[]
  readonly taskId?: readonly string[]
  readonly state?: readonly string[]
  readonly type?: readonly string[]
  readonly tag?: readonly string[]
}

export interface FollowOptions {
  /** Cursor of an earlier stream with the same filter, to go on from there. */
  readonly cursor?: string
  readonly signal?: AbortSignal
}

/** Where a stream stands: plain JSON, to be kept over a reload of the page. */
export interface Bookmark {
  readonly cursor: string
  readonly view: RunView
}

/**
 * How a stream is doing.
 *
 * - `connecting`: nothing has been heard yet
 * - `live`: what is known is current
 * - `stale`: the connection is there, and has been silent for too long
 * - `resuming`: the connection was lost; it is made again, and the stream goes on where it was
 * - `ended`: the stream is over; nothing comes after it
 * - `failed`: it can't go on; `error` says why
 * - `closed`: closed by its user
 */
export type StreamState = "connecting" | "live" | "stale" | "resuming" | "ended" | "failed" | "closed"

/** How a stream is doing and what is known, at one moment. It never changes; another takes its place. */
export interface Current {
  readonly state: StreamState
  readonly view: RunView
  /** Why it failed; or, while it is `resuming`, what was wrong with the last attempt. */
  readonly error: StreamError | null
}

/** Called after frames or a change of state; `frames` are those that have come since the last call. */
export type Listener<Now> = (now: Now, frames: readonly Frame[]) => void

/** The stream of one run. What is iterated are its frames from now on, without those about connections. */
export interface RunStream extends AsyncIterable<Frame> {
  /** The same object until something changes: made for `useSyncExternalStore`. */
  readonly current: Current
  readonly state: StreamState
  readonly view: RunView
  /** The run, once it is known: at once for `watch`, when it was triggered for `run`. */
  readonly started: Promise<RunKey>
  /** The first outcome; a run that fails has one, too. Rejects with a `StreamError` where the stream fails or is closed. */
  readonly result: Promise<Outcome>
  /** Where the stream stands; `null` before the first batch. */
  readonly bookmark: Bookmark | null
  subscribe(listener: Listener<Current>): () => void
  close(): void
}

/** The stream of many runs. */
export interface FrameStream extends AsyncIterable<Frame> {
  readonly state: StreamState
  readonly error: StreamError | null
  readonly cursor: string | null
  subscribe(listener: Listener<FrameStream>): () => void
  close(): void
}

export interface RunKey {
  readonly dagId: string
  readonly runId: string
}

export interface Client {
  /** Watches a run, from what it has come to until its stream ends. */
  watch(dagId: string, runId: string, options?: WatchOptions): RunStream
  /** Triggers a run and watches it. It is triggered once, however often the connection breaks. */
  run(dagId: string, conf?: Readonly<Record<string, unknown>>, options?: RunOptions): RunStream
  /** Sets a run to failed, and returns its state: `running` while a teardown still has to run. */
  cancel(dagId: string, runId: string): Promise<string | null>
  /** Follows the transitions of many runs. */
  follow(filter?: Filter, options?: FollowOptions): FrameStream
  /** Closes all streams. */
  close(): void
}

/** What the client takes from the browser, so that tests and other runtimes can put something else in its place. */
export interface Platform {
  readonly fetch: typeof fetch
  readonly WebSocket: typeof WebSocket | undefined
  readonly locks: LockManager | undefined
  readonly BroadcastChannel: typeof BroadcastChannel | undefined
  readonly clock: Clock
  /** A number from 0 to below 1. */
  readonly random: () => number
  /** Calls back when the page is shown again or the network is back; returns how to stop that. */
  readonly onWake: (callback: () => void) => () => void
}

export interface Clock {
  /** Milliseconds since whenever; it only grows. */
  now(): number
  /** Calls back once, after so many milliseconds; returns how to prevent it. */
  after(ms: number, callback: () => void): () => void
}
