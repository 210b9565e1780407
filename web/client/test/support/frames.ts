// Builds frames like the server's.

import type {
  Chunk,
  Failure,
  Frame,
  Progress,
  Result,
  RunTransition,
  Snapshot,
  TaskTransition,
} from "../../src/index.js"

export const RUN = { dag_id: "chat", run_id: "r1" }
const AT = "2026-11-22T14:21:11Z"

export const snapshot = (more: Partial<Snapshot> = {}): Snapshot => ({
  type: "snapshot",
  ...RUN,
  run: { state: "running", queued_at: AT, start_date: AT, end_date: null, clear_number: 0 },
  tasks: [{ task_id: "answer", map_index: -1, try_number: 1, state: "queued", start_date: null, end_date: null }],
  result_tasks: ["answer"],
  ...more,
})

export const task = (seq: number, state: string | null, more: Partial<TaskTransition> = {}): TaskTransition => ({
  type: "task",
  ...RUN,
  seq,
  at: `2026-11-22T14:22:${String(seq % 60).padStart(2, "0")}Z`,
  task_id: "answer",
  map_index: -1,
  try_number: 1,
  state,
  previous_state: null,
  ...more,
})

export const run = (seq: number, state: string | null, more: Partial<RunTransition> = {}): RunTransition => ({
  type: "run",
  ...RUN,
  seq,
  at: `2026-11-22T14:22:${String(seq % 60).padStart(2, "0")}Z`,
  state,
  previous_state: null,
  clear_number: 0,
  ...more,
})

export const chunk = (seq: number, index: number, value: unknown, more: Partial<Chunk> = {}): Chunk => ({
  type: "chunk",
  ...RUN,
  seq,
  at: AT,
  task_id: "answer",
  map_index: -1,
  try_number: 1,
  index,
  value,
  ...more,
})

export const progress = (seq: number, index: number, fraction: number, text: string | null = null): Progress => ({
  type: "progress",
  ...RUN,
  seq,
  at: AT,
  task_id: "answer",
  map_index: -1,
  try_number: 1,
  index,
  value: { fraction, text },
})

export const result = (value: unknown = 42, more: Partial<Result> = {}): Result => ({
  type: "result",
  ...RUN,
  results: { answer: value },
  ...more,
})

export const failure = (more: Partial<Failure> = {}): Failure => ({
  type: "failure",
  ...RUN,
  reason: "task_failed",
  task_id: "answer",
  ...more,
})

export const reset = (reason: string): Frame => ({ type: "reset", ...RUN, reason })

export const resumed = (since: string): Frame => ({ type: "resumed", ...RUN, since })

export const end = (outcome: "result" | "failure" | "none" = "result", state = "success"): Frame => ({
  type: "end",
  ...RUN,
  state,
  outcome,
})

/** Returns the frame as the last one of a batch, which has a cursor. */
export const withCursor = <Type extends Frame>(cursor: string, frame: Type): Type => ({ ...frame, cursor })
