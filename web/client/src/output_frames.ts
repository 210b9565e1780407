import type { Frame as Told } from "./frames.js"

/** Output from inside a running task. */
export interface Chunk {
  type: "chunk"
  dag_id: string
  run_id: string
  seq: number
  at: string
  task_id: string
  map_index: number
  try_number: number
  /** Place among what the try has said, chunks and progress together; from 0. */
  index: number
  /** What the task said; absent where `withheld`. */
  value?: unknown
  /** The caller may read the run, and not what its tasks return or say. */
  withheld?: boolean
  id?: string
  cursor?: string
}

/** How far a running task has come. */
export interface Progress extends Omit<Chunk, "type" | "value"> {
  type: "progress"
  /** Absent where `withheld`. */
  value?: { fraction: number | null; text: string | null }
}

/** Any frame; `type` tells which. */
export type Frame = Told | Chunk | Progress
