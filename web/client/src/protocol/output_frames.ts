// Made of the server's JSON Schema by `make frame-types`; to change it, change stream_server/protocol/frames.py.

import type { Report, ToolRequest, ToolResponse } from "./frame_members.js"

/** A running task emitted a chunk of output, usually a part of its result. */
export interface Chunk {
  type: "chunk"
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
  /** Position in the output of this try, frames of all types together, from 0. Missing positions were not kept. */
  index: number
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /** Any JSON value, as the database holds it. Append text to the text of earlier chunks. */
  value?: unknown
  /** Whether the value is left out because the caller may not read it. */
  withheld?: boolean
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** A running task reported its progress. */
export interface Progress {
  type: "progress"
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
  /** Position in the output of this try, frames of all types together, from 0. Missing positions were not kept. */
  index: number
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /** The progress. It replaces earlier progress of the task instance. */
  value?: Report
  /** Whether the value is left out because the caller may not read it. */
  withheld?: boolean
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The AI model of a running task emitted a part of its thinking, which is not part of the result. */
export interface Thinking {
  type: "thinking"
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
  /** Position in the output of this try, frames of all types together, from 0. Missing positions were not kept. */
  index: number
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /**
   * Append the text to that of earlier frames of this type, unless a `chunk`, `tool_call` or `tool_result` of the
   * task instance came in between.
   */
  value?: string
  /** Whether the value is left out because the caller may not read it. */
  withheld?: boolean
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The AI model of a running task calls a tool. A `tool_result` with the same `value.id` follows. */
export interface ToolCall {
  type: "tool_call"
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
  /** Position in the output of this try, frames of all types together, from 0. Missing positions were not kept. */
  index: number
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /** The call. */
  value?: ToolRequest
  /** Whether the value is left out because the caller may not read it. */
  withheld?: boolean
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** A tool call of a running task has ended. */
export interface ToolResult {
  type: "tool_result"
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
  /** Position in the output of this try, frames of all types together, from 0. Missing positions were not kept. */
  index: number
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
  /** The outcome of the call. */
  value?: ToolResponse
  /** Whether the value is left out because the caller may not read it. */
  withheld?: boolean
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}
