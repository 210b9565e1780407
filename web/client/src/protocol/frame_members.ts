// Made of the server's JSON Schema by `make frame-types`; to change it, change stream_server/protocol/frames.py.

/** State of a DAG run. */
export interface RunInfo {
  /** `queued`, `running`, `success` or `failed`, or a state that a later Airflow adds. */
  state: string | null
  /** When it was last queued. */
  queued_at: string | null
  /** When it started; `null` before. */
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
  /** Index of an instance of a mapped task; -1 if the task is not mapped, or not expanded yet. */
  map_index: number
  /** Number of the try, counted from 1; 0 before the first try. */
  try_number: number
  /** Airflow's name of the state; `null` before the task is scheduled. */
  state: string | null
  /** When it started; `null` before. */
  start_date: string | null
  /** When it ended; `null` before. */
  end_date: string | null
  /** Iteration of the task loop (Airflow 3.4) around the task, from 0; absent outside of loops. */
  iteration?: number | null
}

/** How far a task has come. */
export interface Report {
  /** From 0 to 1; `null` if unknown. */
  fraction?: number | null
  /** Description of the progress. */
  text?: string | null
}

/** A call of a tool. The task runs the tool, not the client. */
export interface ToolRequest {
  /** Id of the call, unique in its try. */
  id: string
  /** Name of the tool. */
  name: string
  /** The arguments: a JSON object, or the text that the model wrote if that is not one. */
  arguments: unknown
  /** Whether `arguments` is the start of their text, because they were too large. */
  truncated?: boolean
}

/** What a tool returned, or why it returned nothing. */
export interface ToolResponse {
  /** Id of the call, unique in its try. */
  id: string
  /** Any JSON value; absent if there is an `error`. */
  result?: unknown
  /** Why there is no result, such as an exception of the tool or a denial. */
  error?: string | null
  /** Whether `result` is the start of its text, because it was too large. */
  truncated?: boolean
}

/** A field of the form. */
export interface InputParam {
  /** Value that is set in advance: any JSON value. */
  value: unknown
  /** Description for people. */
  description: string | null
  /** JSON Schema of the value: a JSON object. */
  schema: unknown
}

/** A user, as Airflow's auth manager names them. */
export interface InputUser {
  /** Id of the user. */
  id: string
  /** Name of the user. */
  name: string
}

/** Where to get a value that is too large to be sent. */
export interface Reference {
  /** Path below Airflow's address. */
  href: string
  /** Size of the value as JSON text. */
  bytes: number
}
