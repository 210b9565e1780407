// Made of the server's JSON Schema by `make frame-types`; to change it, change stream_server/protocol/frames.py.

import type { InputParam, InputUser, Reference } from "./frame_members.js"

/**
 * A task asks for human input. It replaces an earlier request of the task instance.
 *
 *     The request is open until `input_answered`, until a `task` frame of the instance with another `try_number` or
 * with
 *     another state than `running`, `deferred` or `awaiting_input`, or until the run ends.
 */
export interface Input {
  type: "input"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** The task. */
  task_id: string
  /** Index of an instance of a mapped task; -1 if the task is not mapped, or not expanded yet. */
  map_index: number
  /** Number of the try, counted from 1; 0 before the first try. */
  try_number: number
  /** When the task asked. With the task instance and the try, it identifies the request. */
  asked_at: string
  /** Id of the journal row; absent after a snapshot. Together with `type` it is unique. */
  seq?: number | null
  /** When the row was written, inside Airflow's transaction; UTC. */
  at?: string | null
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /** The question; absent if the content is left out. */
  subject?: string | null
  /** More text, usually Markdown. */
  body?: string | null
  /** The options to choose from. */
  options?: string[]
  /** Options that are chosen if there is no answer in time. */
  defaults?: string[] | null
  /** Whether several options may be chosen. */
  multiple?: boolean
  /** Fields of the form, by name. */
  params?: Record<string, InputParam>
  /** Users who may answer; absent if all with the permission may. */
  assignees?: InputUser[]
  /** When the request expires, from Airflow 3.3 on; absent if never, or if not known yet. */
  expires_at?: string | null
  /** Where to get the content, if it is too large to be sent. */
  reference?: Reference | null
  /** Whether the content is left out because the caller may not read it. */
  withheld?: boolean
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** A request for human input was answered, or has expired and has its defaults. */
export interface InputAnswered {
  type: "input_answered"
  /** The DAG. */
  dag_id: string
  /** The run, as Airflow names it. */
  run_id: string
  /** The task. */
  task_id: string
  /** Index of an instance of a mapped task; -1 if the task is not mapped, or not expanded yet. */
  map_index: number
  /** Number of the try, counted from 1; 0 before the first try. */
  try_number: number
  /** When the task asked. With the task instance and the try, it identifies the request. */
  asked_at: string
  /** Id of the journal row; absent after a snapshot. Together with `type` it is unique. */
  seq?: number | null
  /** When the row was written, inside Airflow's transaction; UTC. */
  at?: string | null
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /** When it was answered. */
  answered_at: string
  /** The user who answered; absent if it has expired. */
  by?: InputUser | null
  /** Whether the defaults were chosen because there was no answer. */
  expired?: boolean
  /** The options that were chosen. */
  chosen_options?: string[]
  /** JSON value by field of the form. */
  params_input?: Record<string, unknown>
  /** Where to get the content, if it is too large to be sent. */
  reference?: Reference | null
  /** Whether the content is left out because the caller may not read it. */
  withheld?: boolean
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}
