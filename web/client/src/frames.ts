// Made of the server's JSON Schema by `make frame-types`; to change it, change stream_server/frames.py.
/** All that is known of the run at this moment; what follows goes on from here. */
export interface Snapshot {
  type: "snapshot"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** The run itself. */
  run: RunInfo
  /** The task instances. */
  tasks: TaskInfo[]
  /** Tasks whose return values answer the caller, as far as they are known yet. */
  result_tasks: string[]
  /** Instances per state, by task, for mapped tasks with too many instances to list in `tasks`. */
  counts?: Record<string, Record<string, number>>
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** State of a DAG run. */
export interface RunInfo {
  /** `queued`, `running`, `success` or `failed`, and what later versions of Airflow add. */
  state: string | null
  /** When it was queued last. */
  queued_at: string | null
  /** When it began; `null` before. */
  start_date: string | null
  /** When it ended; `null` before. */
  end_date: string | null
  /** How often the run was cleared. */
  clear_number: number
}

/** State of a task instance. */
export interface TaskInfo {
  /** The task. */
  task_id: string
  /** Place of an instance of a mapped task; -1 for what is not mapped, or not expanded yet. */
  map_index: number
  /** Which try it is, counted from 1; 0 before the first. */
  try_number: number
  /** As Airflow names it; `null` before the task is scheduled. */
  state: string | null
  /** When it began; `null` before. */
  start_date: string | null
  /** When it ended; `null` before. */
  end_date: string | null
}

/** A task instance changed. An instance with `map_index` 0 or more takes the place of the one with -1. */
export interface TaskTransition {
  type: "task"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** Identity of the row; together with `type` it is unique in the stream, but for `chunk` and `progress`. */
  seq: number
  /** When the row was written, inside Airflow's transaction; UTC. */
  at: string
  /** The task. */
  task_id: string
  /** Place of an instance of a mapped task; -1 for what is not mapped, or not expanded yet. */
  map_index: number
  /** Which try it is, counted from 1; 0 before the first. */
  try_number: number
  /** The new state; `null` where the task is not scheduled, as after it was cleared. */
  state: string | null
  /** The state before; `null` where there was none. */
  previous_state: string | null
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The run changed its state, or was cleared. */
export interface RunTransition {
  type: "run"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** Identity of the row; together with `type` it is unique in the stream, but for `chunk` and `progress`. */
  seq: number
  /** When the row was written, inside Airflow's transaction; UTC. */
  at: string
  /** The new state; `null` where the run was deleted. */
  state: string | null
  /** The state before; `null` where there was none. */
  previous_state: string | null
  /** How often the run was cleared. */
  clear_number: number
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** A running task has said something: a part of its answer, mostly. */
export interface Chunk {
  type: "chunk"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** Identity of the row; together with `type` it is unique in the stream, but for `chunk` and `progress`. */
  seq: number
  /** When the row was written, inside Airflow's transaction; UTC. */
  at: string
  /** The task. */
  task_id: string
  /** Place of an instance of a mapped task; -1 for what is not mapped, or not expanded yet. */
  map_index: number
  /** Which try it is, counted from 1; 0 before the first. */
  try_number: number
  /** Place among all that this try has said, chunks and progress together, from 0. What is missing was never kept. */
  index: number
  /** Any JSON value, as the database holds it; text is to be appended to what came before. */
  value?: unknown
  /** Whether the caller may not read the value, and it was left out. */
  withheld?: boolean
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** A running task has said how far it has come. */
export interface Progress {
  type: "progress"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** Identity of the row; together with `type` it is unique in the stream, but for `chunk` and `progress`. */
  seq: number
  /** When the row was written, inside Airflow's transaction; UTC. */
  at: string
  /** The task. */
  task_id: string
  /** Place of an instance of a mapped task; -1 for what is not mapped, or not expanded yet. */
  map_index: number
  /** Which try it is, counted from 1; 0 before the first. */
  try_number: number
  /** Place among all that this try has said, chunks and progress together, from 0. What is missing was never kept. */
  index: number
  /** How far; it takes the place of what was said before. */
  value?: Report
  /** Whether there are values that the caller may not read; then there are neither `results` nor `references`. */
  withheld?: boolean
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** How far a task has come. */
export interface Report {
  /** From 0 to 1; `null` where that can't be said. */
  fraction?: number | null
  /** The same in words. */
  text?: string | null
}

/** The answer: what the result tasks returned. The run may still go on. */
export interface Result {
  type: "result"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** JSON value by task, as the database holds it; of a mapped task a list by `map_index`. */
  results: Record<string, unknown>
  /** By task, where to get a value that is too large to be sent. */
  references?: Record<string, Reference>
  /** Whether there are values that the caller may not read; then there are neither `results` nor `references`. */
  withheld?: boolean
  /** Row that completed the answer; absent where it was complete before the stream began. */
  seq?: number | null
  /** When the row was written, inside Airflow's transaction; UTC. */
  at?: string | null
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** Where to get a value that is too large to be sent. */
export interface Reference {
  /** Path below Airflow's address. */
  href: string
  /** Size of the value as JSON text. */
  bytes: number
}

/** It is certain that the answer will not come. */
export interface Failure {
  type: "failure"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** What became of the task instance at fault, or of the run where no task is. */
  reason: "task_failed" | "task_upstream_failed" | "task_skipped" | "task_removed" | "run_failed" | "run_deleted" | (string & {})
  /** The task at fault. */
  task_id?: string | null
  /** Place of an instance of a mapped task; -1 for what is not mapped, or not expanded yet. */
  map_index?: number | null
  /** Which try it is, counted from 1; 0 before the first. */
  try_number?: number | null
  /** State of the task instance at fault, or of the run where no task is. */
  state?: string | null
  /** Whether Airflow has yet to write down what makes it certain. */
  predicted?: boolean
  /** Row that made it certain; absent where it was certain before the stream began. */
  seq?: number | null
  /** When the row was written, inside Airflow's transaction; UTC. */
  at?: string | null
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** Forget what was said; a snapshot follows. In a stream of many runs none does, and no run is named. */
export interface Reset {
  type: "reset"
  /** The DAG. */
  dag_id?: string | null
  /** The run, as Airflow names it. */
  run_id?: string | null
  /**
   * Why what was said is worth nothing any more.
   *
   * `cleared`, `retried`, `revoked`: an outcome was taken back, or what a task had said. `journal_changed`: the
   * database was replaced or set back. `transitions_lost`: something was not written down. `cursor_expired`,
   * `cursor_foreign`, `cursor_damaged`: the client came back with a cursor older than the journal, of another
   * journal, or that is none. `access_changed`: the client came back, and may read values now that were withheld from
   * him.
   */
  reason: "cleared" | "retried" | "revoked" | "journal_changed" | "transitions_lost" | "cursor_expired" | "cursor_foreign" | "cursor_damaged" | "access_changed" | (string & {})
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The stream goes on where the client was: what was missed follows, and then what comes. */
export interface Resumed {
  type: "resumed"
  /** The DAG. */
  dag_id?: string | null
  /** The run, as Airflow names it. */
  run_id?: string | null
  /** Cursor that the client came back with. */
  since: string
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The stream is over; nothing comes after it. */
export interface End {
  type: "end"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** State of the run; `None` where the run was deleted. */
  state: string | null
  /** What the caller was told; `none` where no task answers. */
  outcome: "failure" | "none" | "result"
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The connection ends, but the stream does not. */
export interface Close {
  type: "close"
  /**
   * Also the close code of a WebSocket. Below 4500 the client should connect again, from 4500 on it should not.
   *
   * - `4001` DRAINING: The server is shutting down.
   * - `4002` SLOW: The client read more slowly than its run produced frames.
   * - `4003` UNAVAILABLE: The journal can't be followed, or Airflow can't be asked, just now.
   *
   * Before the first frame only an `EventSource` is told so, which won't come back after a 503.
   * - `4004` AGED: The connection has lived for as long as this server lets one live.
   * - `4005` INTERNAL: The server lost its place; a new connection starts with a fresh snapshot.
   * - `4006` AUTH_EXPIRING: The caller's token is about to expire; he goes on with another one.
   * - `4007` ACCESS_CHANGED: The caller may see more or less of the run than when he came; a new connection tells him
   * what he may.
   * - `4010` THROTTLED: The caller has, or does, more than one may.
   *
   * Told to an `EventSource`, which gives up after a 429, and to who says on a WebSocket only in a message who he is.
   * - `4500` REFUSED: What was asked for can't be had; the `error` frame before says why.
   * - `4501` UNAUTHENTICATED: The caller did not say who he is, or his token has expired or was revoked.
   * - `4503` FORBIDDEN: The caller may not read this any more.
   * - `4510` IDLE: Nothing was subscribed to.
   */
  code: 4001 | 4002 | 4003 | 4004 | 4005 | 4006 | 4007 | 4010 | 4500 | 4501 | 4503 | 4510 | (number & {})
  /** The same in words, for people. */
  reason: string
  /** Whether the client should connect again; what clients go by that don't know the code. */
  reconnect: boolean
  /** How long to wait before connecting again, in milliseconds. */
  retry_ms?: number | null
  /** On a connection of many streams, what the client called the stream. */
  id?: string
}

/** Nothing happened, and the connection is alive. A frame, since scripts can't see SSE comments. */
export interface Ping {
  type: "ping"
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The token is about to expire. The client can send another one, and the connection goes on. */
export interface AuthExpiring {
  type: "auth_expiring"
  /** When it does. */
  expires_at: string
}

/** What the client asked for on a WebSocket was done. */
export interface Ack {
  type: "ack"
  /** What was done. */
  op: "auth" | "ping" | "subscribe" | "unsubscribe"
  /** What the client called it; empty where it gave no name. */
  id: string
}

/** What the client asked for on a WebSocket was refused. All else goes on. */
export interface Refusal {
  type: "error"
  /** What the client called it; empty where it could not be read. */
  id: string
  /** The `type` of the problem, as in `application/problem+json` (RFC 9457). */
  problem: string
  /** The same in words. */
  title: string
  /** The HTTP status code that a request of its own would have been answered with. */
  status: number
  /** What was wrong, and what would be right. */
  detail: string
}

/** Any frame; `type` tells which. */
export type Frame =
  | Snapshot
  | TaskTransition
  | RunTransition
  | Chunk
  | Progress
  | Result
  | Failure
  | Reset
  | Resumed
  | End
  | Close
  | Ping
  | AuthExpiring
  | Ack
  | Refusal

/** The types that this version knows. Frames of others are ignored. */
export const FRAME_TYPES = [
  "snapshot",
  "task",
  "run",
  "chunk",
  "progress",
  "result",
  "failure",
  "reset",
  "resumed",
  "end",
  "close",
  "ping",
  "auth_expiring",
  "ack",
  "error",
] as const

/** Why a connection ends before its stream does; also the close code of a WebSocket. */
export const CLOSE_CODES = {
  DRAINING: 4001,
  SLOW: 4002,
  UNAVAILABLE: 4003,
  AGED: 4004,
  INTERNAL: 4005,
  AUTH_EXPIRING: 4006,
  ACCESS_CHANGED: 4007,
  THROTTLED: 4010,
  REFUSED: 4500,
  UNAUTHENTICATED: 4501,
  FORBIDDEN: 4503,
  IDLE: 4510,
} as const
