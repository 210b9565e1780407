// The public types of the client.

import type { StreamError } from "./errors.js"
import type { Frame, Input } from "./protocol/frames.js"
import type { Outcome, RunView } from "./run_view.js"

/**
 * How requests are authenticated.
 *
 * - `"cookie"`: by the browser's cookies, as Airflow's login sets them. The default.
 * - `{ bearer }`: by a token, or a function that returns one. It is sent in the header `Authorization`, and over a
 *   WebSocket in the first message; never in a URL.
 * - `{ ticket }`: by a function that returns a ticket for the paths. It is called for each connection, and gets the ticket
 *   from your backend, which requests it with `POST /api/v2/stream/tickets`. The browser then never has a token. Tickets
 *   open streams only: requests that trigger and cancel runs use the browser's cookies.
 * - `"none"`: not at all, for servers without authentication.
 */
export type Auth =
  | "cookie"
  | "none"
  | { readonly bearer: string | BearerSource }
  | { readonly ticket: (paths: readonly string[]) => string | Promise<string> }

/** Returns a token. `refresh` is true if the last one was refused or is about to expire. */
export type BearerSource = (refresh: boolean) => string | Promise<string>

/**
 * How frames are transported.
 *
 * - `"sse"`: one HTTP request per stream. The default. Without HTTP/2, browsers open at most six per host.
 * - `"websocket"`: one WebSocket per stream.
 * - `"multiplex"`: one WebSocket for all streams of the client.
 *
 * Where WebSockets do not work, the client falls back to SSE and resumes the stream.
 */
export type TransportName = "sse" | "websocket" | "multiplex"

export interface ClientOptions {
  /** URL of the server, such as `https://airflow.example.com`; by default the origin of the page. */
  readonly baseUrl?: string
  readonly auth?: Auth
  readonly transport?: TransportName
  /**
   * Share one connection among all tabs of a browser that use the same name; implies `"multiplex"`. Use a different name for
   * each signed-in user: all tabs see what the tab with the connection may see. Without Web Locks or BroadcastChannel
   * each tab has its own connection.
   */
  readonly shareAs?: string
  /** How long to retry while no server answers, in milliseconds; forever by default. */
  readonly giveUpAfterMs?: number
  /** @deprecated Use `giveUpAfterMs`. */
  readonly patienceMs?: number
  /** The server's interval between pings, in milliseconds; 15,000 by default. A longer one is detected. */
  readonly pingIntervalMs?: number
  /** Replacements for parts of the browser. */
  readonly platform?: Partial<Platform>
}

/** Which outcome a stream waits for, and when it ends. */
export interface OutcomeOptions {
  /** Tasks whose return values are the result; by default those that the DAG marks as result tasks. */
  readonly result?: readonly string[]
  /** `"result"` (default): the stream ends with the outcome. `"run"`: it ends with the run. */
  readonly until?: "result" | "run"
  /** `"push"` (default): a result is sent as soon as its value is stored. `"success"`: when its task has succeeded. */
  readonly confirm?: "push" | "success"
}

/** @deprecated Use `OutcomeOptions`. */
export type Question = OutcomeOptions

export interface WatchOptions extends OutcomeOptions {
  /** Resume an earlier stream of the same run with the same options. */
  readonly bookmark?: Bookmark
  /** Closes the stream. */
  readonly signal?: AbortSignal
}

/** Parameters of Airflow's endpoint that triggers runs, and options of the stream. */
export interface RunOptions extends OutcomeOptions {
  readonly dagRunId?: string
  readonly logicalDate?: string | null
  readonly note?: string
  /** `"attach"`: if a run with this `dagRunId` exists, stream it instead of failing. */
  readonly ifExists?: "fail" | "attach"
  /** `"cancel"`: the run is cancelled when no client watches it any more. Over SSE only. */
  readonly onDisconnect?: "continue" | "cancel"
  /** Identifies this call, so that retries don't trigger a second run; random by default. */
  readonly idempotencyKey?: string
  readonly signal?: AbortSignal
}

/** Which transitions of many runs are sent; at most 100 values per list. */
export interface Filter {
  readonly dagId?: readonly string[]
  readonly runId?: readonly string[]
  readonly taskId?: readonly string[]
  readonly state?: readonly string[]
  readonly type?: readonly string[]
  readonly tag?: readonly string[]
}

export interface FollowOptions {
  /** Resume after the cursor of an earlier stream with the same filter. */
  readonly cursor?: string
  readonly signal?: AbortSignal
}

/** Where to resume a stream. Plain JSON that can be stored across page reloads. */
export interface Bookmark {
  readonly cursor: string
  readonly view: RunView
}

/**
 * State of a stream.
 *
 * - `connecting`: no frame has arrived yet
 * - `live`: the view is up to date
 * - `stale`: the connection is open, but no frame or ping has arrived for too long
 * - `resuming`: the connection was lost, and the client reconnects; the view may be out of date
 * - `ended`: the stream is complete
 * - `failed`: the stream cannot continue; `error` has the reason
 * - `closed`: closed by the caller
 */
export type StreamState = "connecting" | "live" | "stale" | "resuming" | "ended" | "failed" | "closed"

/** State and view of a run's stream at one moment. Immutable: each change creates a new object. */
export interface RunStatus {
  readonly state: StreamState
  readonly view: RunView
  /** Why the stream failed; while it is `resuming` or `connecting`, why the last attempt failed. */
  readonly error: StreamError | null
}

/** @deprecated Use `RunStatus`. */
export type Current = RunStatus

/** Called after frames and after changes of the state. `frames` are those that arrived since the last call. */
export type Listener<Status> = (status: Status, frames: readonly Frame[]) => void

/** The stream of one run. Iterates over its frames from now on, without those about the connection. */
export interface RunStream extends AsyncIterable<Frame> {
  /** The same object until something changes, as `useSyncExternalStore` requires. */
  readonly current: RunStatus
  readonly state: StreamState
  readonly view: RunView
  /** The run. Resolves at once for `watch`, and for `run` when the run is triggered. */
  readonly started: Promise<RunKey>
  /**
   * The first outcome, which may be a failure of the run, or `none`. Rejects with a `StreamError` if the stream fails or is
   * closed.
   */
  readonly result: Promise<Outcome>
  /** Where to resume this stream; `null` before the first batch of frames. */
  readonly bookmark: Bookmark | null
  subscribe(listener: Listener<RunStatus>): () => void
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

/** What identifies a request for human input; an `input` frame has it. */
export type InputKey = Pick<Input, "dag_id" | "run_id" | "task_id" | "map_index" | "iteration" | "asked_at">

/** An answer to a request for human input. */
export interface InputAnswer {
  /** One of the options, or several if the request permits it. */
  readonly chosenOptions: readonly string[]
  /** JSON value by field of the form. */
  readonly paramsInput?: Readonly<Record<string, unknown>>
}

export interface Client {
  /** Stream a run, from its present state until the stream ends. */
  watch(dagId: string, runId: string, options?: WatchOptions): RunStream
  /** Trigger a run and stream it. It is triggered once, however often the connection is lost. */
  run(dagId: string, conf?: Readonly<Record<string, unknown>>, options?: RunOptions): RunStream
  /** Set a run to failed. Returns its state: `running` while a teardown task has yet to run. */
  cancel(dagId: string, runId: string): Promise<string | null>
  /**
   * Answer a request for human input, with the caller's rights. Rejects with a `StreamError`: its `status` is 409 if the
   * request is not open any more, 403 if the caller may not answer it, and 422 if the answer does not fit it.
   *
   * @param request the `input` frame, or its members
   */
  answer(request: InputKey, answer: InputAnswer): Promise<void>
  /** Stream the transitions of many runs. */
  follow(filter?: Filter, options?: FollowOptions): FrameStream
  /** Close all streams. */
  close(): void
}

/** What the client uses of the browser. Tests and other runtimes can replace it. */
export interface Platform {
  readonly fetch: typeof fetch
  readonly WebSocket: typeof WebSocket | undefined
  readonly locks: LockManager | undefined
  readonly BroadcastChannel: typeof BroadcastChannel | undefined
  readonly clock: Clock
  /** Returns a number from 0 to below 1. */
  readonly random: () => number
  /** Calls back when the page becomes visible again or the network is back. Returns a function that stops that. */
  readonly onWake: (callback: () => void) => () => void
}

export interface Clock {
  /** Milliseconds since a fixed moment. Never decreases. */
  now(): number
  /** Calls back once, after that many milliseconds. Returns a function that prevents it. */
  after(ms: number, callback: () => void): () => void
}
