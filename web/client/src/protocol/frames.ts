// Made of the server's JSON Schema by `make frame-types`; to change it, change stream_server/protocol/frames.py.

import type { Ack, AuthExpiring, Close, Ping, Refusal } from "./connection_frames.js"

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

/** Any frame; `type` is the discriminator. */
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

/** The frame types that this version supports. Other frames are ignored. */
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
