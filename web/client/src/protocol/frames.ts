// Made of the server's JSON Schema by `make frame-types`; to change it, change stream_server/protocol/frames.py.

import type { Ack, AuthExpiring, Close, Ping, Refusal } from "./connection_frames.js"
import type { Reference, RunInfo, TaskInfo } from "./frame_members.js"
import type { Input, InputAnswered } from "./input_frames.js"
import type { Chunk, Progress, Thinking, ToolCall, ToolResult } from "./output_frames.js"

export type { InputParam, InputUser, Reference, Report, RunInfo, TaskInfo, ToolRequest, ToolResponse } from "./frame_members.js"
export type { Input, InputAnswered } from "./input_frames.js"
export type { Chunk, Progress, Thinking, ToolCall, ToolResult } from "./output_frames.js"

/** The state of the run and its task instances at this moment. Later frames continue from here. */
export interface Snapshot {
  type: "snapshot"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** The run. */
  run: RunInfo
  /**
   * The task instances. Of a task in a loop, those of the newest iteration come last, after those of some earlier
   * ones.
   */
  tasks: TaskInfo[]
  /** Tasks whose return values are the result, as far as they are known yet. */
  result_tasks: string[]
  /**
   * Number of instances by task and state, for tasks that are not in `tasks` because there are too many instances to
   * list them.
   */
  counts?: Record<string, Record<string, number>>
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The run does not proceed. This holds until the next frame of type `waiting`, `run`, `task` or `snapshot`. */
export interface Waiting {
  type: "waiting"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /**
   * Why the run waits; `null` if the reason that was sent does not hold any more.
   *
   * `dag_paused`: the DAG is paused. `active_runs`: as many runs of the DAG are running as its `max_active_runs`
   * permits. `pool`: the pools of all scheduled task instances have too few free slots.
   */
  reason: "dag_paused" | "active_runs" | "pool" | null | (string & {})
  /** Number of running runs; only with `active_runs`. */
  active_runs?: number | null
  /** The first such pool; only with `pool`. */
  pool?: string | null
  /** Its slots; absent if Airflow has no such pool. */
  slots?: number | null
  /** How many of them are occupied. */
  occupied?: number | null
  /** How many slots the task instance needs. */
  needed?: number | null
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** A task instance changed. An instance with `map_index` 0 or more replaces the one with -1. */
export interface TaskTransition {
  type: "task"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /**
   * Id of the row. Together with `type` it is unique in the stream, but for output of tasks, which has an `index`.
   */
  seq: number
  /** When the row was written, inside Airflow's transaction; UTC. */
  at: string
  /** The task. */
  task_id: string
  /** Index of an instance of a mapped task; -1 if the task is not mapped, or not expanded yet. */
  map_index: number
  /** Number of the try, counted from 1; 0 before the first try. */
  try_number: number
  /** The new state; `null` if the task is not scheduled, for example after it was cleared. */
  state: string | null
  /** The state before; `null` if there was none. */
  previous_state: string | null
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
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
  /**
   * Id of the row. Together with `type` it is unique in the stream, but for output of tasks, which has an `index`.
   */
  seq: number
  /** When the row was written, inside Airflow's transaction; UTC. */
  at: string
  /** The new state; `null` if the run was deleted. */
  state: string | null
  /** The state before; `null` if there was none. */
  previous_state: string | null
  /** How often the run was cleared. */
  clear_number: number
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The return values of the result tasks. The run may still be running. */
export interface Result {
  type: "result"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /**
   * JSON value by task, as the database holds it; of a mapped task a list by `map_index`; of a task in a loop the
   * value in its last iteration.
   */
  results: Record<string, unknown>
  /** By task, where to get a value that is too large to be sent. */
  references?: Record<string, Reference>
  /** By mapped task, the `map_index` of each value of its list. Only for tasks whose list has gaps. */
  map_indexes?: Record<string, number[]>
  /**
   * Whether values are left out because the caller may not read them. Then `results`, `references` and `map_indexes`
   * are empty.
   */
  withheld?: boolean
  /** Row that completed the result; absent if it was complete before the stream started. */
  seq?: number | null
  /** When the row was written, inside Airflow's transaction; UTC. */
  at?: string | null
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** It is certain that there will be no result. */
export interface Failure {
  type: "failure"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** What happened to the task instance that is the root cause, or to the run if no task is. */
  reason: "task_failed" | "task_upstream_failed" | "task_skipped" | "task_removed" | "run_failed" | "run_deleted" | (string & {})
  /** Task of the instance that is the root cause. */
  task_id?: string | null
  /** Index of an instance of a mapped task; -1 if the task is not mapped, or not expanded yet. */
  map_index?: number | null
  /** Number of the try, counted from 1; 0 before the first try. */
  try_number?: number | null
  /** State of the task instance that is the root cause, or of the run if no task is. */
  state?: string | null
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /** Whether the failure is certain before Airflow has written the state that causes it. */
  predicted?: boolean
  /** Row that made the failure certain; absent if it was certain before the stream started. */
  seq?: number | null
  /** When the row was written, inside Airflow's transaction; UTC. */
  at?: string | null
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** Discard earlier frames of the run; a snapshot follows. In a stream of many runs: of all runs, without one. */
export interface Reset {
  type: "reset"
  /** The DAG. */
  dag_id?: string | null
  /** The run, as Airflow names it. */
  run_id?: string | null
  /**
   * Why earlier frames are no longer valid.
   *
   * `cleared`, `retried`, `revoked`: an outcome or the output of a task was retracted. `run_changed`: the run has
   * another DAG version, or its task instances were deleted. `journal_changed`: the database was replaced or
   * restored. `transitions_lost`: rows are missing from the journal. `cursor_expired`, `cursor_foreign`,
   * `cursor_damaged`: the client resumed with a cursor that is older than the journal, belongs to another journal, or
   * cannot be read. `access_changed`: the client resumed, and may now read values that were left out before.
   */
  reason: "cleared" | "retried" | "revoked" | "run_changed" | "journal_changed" | "transitions_lost" | "cursor_expired" | "cursor_foreign" | "cursor_damaged" | "access_changed" | (string & {})
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The stream continues from the client's cursor: first the frames that the client missed, then new ones. */
export interface Resumed {
  type: "resumed"
  /** The DAG. */
  dag_id?: string | null
  /** The run, as Airflow names it. */
  run_id?: string | null
  /** The cursor that the client resumed with. */
  since: string
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The stream is complete; no frame follows. */
export interface End {
  type: "end"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** State of the run; `null` if the run was deleted. */
  state: string | null
  /** Which outcome was sent; `none` if there is neither a result nor a failure: see `reason`. */
  outcome: "failure" | "none" | "result"
  /**
   * Why the outcome is `none`; absent for other outcomes.
   *
   * `task_skipped`: the result tasks were skipped. `no_result_task`: no task is a result task. `run_ended`: the run
   * ended as a success before the result tasks had a value, for example as it was marked as one.
   */
  reason?: "task_skipped" | "no_result_task" | "run_ended" | null | (string & {})
  /** The first result task that was skipped; only with `task_skipped`. */
  task_id?: string | null
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** Any frame; `type` is the discriminator. */
export type Frame =
  | Snapshot
  | Waiting
  | TaskTransition
  | RunTransition
  | Chunk
  | Progress
  | Thinking
  | ToolCall
  | ToolResult
  | Input
  | InputAnswered
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
  "waiting",
  "task",
  "run",
  "chunk",
  "progress",
  "thinking",
  "tool_call",
  "tool_result",
  "input",
  "input_answered",
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
