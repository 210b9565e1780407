// The view of a run: its frames, folded into one object. Pure: a view is immutable plain JSON; each frame creates a new one.

import type {
  Chunk,
  End,
  Failure,
  Frame,
  Progress,
  Reference,
  RunInfo,
  RunTransition,
  Snapshot,
  TaskInfo,
  TaskTransition,
} from "./protocol/frames.js"

/** What one task instance has emitted in its current try. */
export interface TaskOutput {
  readonly tryNumber: number
  /** Values of its chunks, oldest first, in blocks; `chunksOf` joins them. */
  readonly blocks: readonly (readonly unknown[])[]
  /** All chunks that are strings, joined. */
  readonly text: string
  /** The last progress that it reported. */
  readonly progress: { readonly fraction: number | null; readonly text: string | null } | null
  /** Whether it has emitted values that the caller may not read. */
  readonly withheld: boolean
}

/** @deprecated Use `TaskOutput`. */
export type Output = TaskOutput

/** The result or failure of a run. The run may continue after it, and a cleared task resets it. */
export type Outcome =
  | { readonly kind: "pending" }
  | {
      readonly kind: "result"
      /** Return value of the result task, or an object of values by task if there are several; `undefined` if withheld or too large. */
      readonly value: unknown
      readonly results: Readonly<Record<string, unknown>>
      /** Where to download values that are too large to be sent, by task. */
      readonly references: Readonly<Record<string, Reference>>
      /** Whether there are values that the caller may not read. */
      readonly withheld: boolean
    }
  | { readonly kind: "failure"; readonly failure: Failure }
  /** The run ended, and it has no result task. */
  | { readonly kind: "none" }

/** State, output and outcome of a run. */
export interface RunView {
  readonly dagId: string | null
  readonly runId: string | null
  /** State and times of the run; `null` before the first snapshot. */
  readonly run: RunInfo | null
  /** Task instances, by `taskKey`. */
  readonly tasks: Readonly<Record<string, TaskInfo>>
  /** Number of instances by task and state, for mapped tasks with too many instances to list. */
  readonly counts: Readonly<Record<string, Readonly<Record<string, number>>>>
  /** Result tasks, as far as they are known. */
  readonly resultTasks: readonly string[]
  /** What tasks have emitted, by `taskKey`. */
  readonly output: Readonly<Record<string, TaskOutput>>
  readonly outcome: Outcome
  /** Why earlier frames were retracted, if they were. */
  readonly resetReason: string | null
  /** The last frame of the stream; `null` before it arrives. */
  readonly end: End | null
}

/** The view before the first frame. */
export const EMPTY_VIEW: RunView = {
  dagId: null,
  runId: null,
  run: null,
  tasks: {},
  counts: {},
  resultTasks: [],
  output: {},
  outcome: { kind: "pending" },
  resetReason: null,
  end: null,
}

/** @deprecated Use `EMPTY_VIEW`. */
export const NOTHING_KNOWN: RunView = EMPTY_VIEW

const FINAL_RUN_STATES = new Set<string | null>(["success", "failed"])

/** States in which a try has ended: `airflow.utils.state.State.finished`, and `up_for_retry`. */
const FINAL_TRY_STATES = new Set<string | null>([
  "success",
  "failed",
  "upstream_failed",
  "skipped",
  "removed",
  "up_for_retry",
])

const BLOCK_SIZE = 256

const NO_STATUS = "no_status"

/** Return the key of a task instance in a view: `task`, or `task[3]` for an instance of a mapped task. */
export function taskKey(taskId: string, mapIndex: number): string {
  return mapIndex < 0 ? taskId : `${taskId}[${mapIndex}]`
}

/** Return the values of all chunks, oldest first. */
export function chunksOf(output: TaskOutput): unknown[] {
  return output.blocks.flat(1)
}

/** Return the view after a frame. Frames about the connection and frames of unknown types change nothing. */
export function reduce(view: RunView, frame: Frame): RunView {
  switch (frame.type) {
    case "snapshot":
      return applySnapshot(view, frame)
    case "task":
      return applyTask(view, frame)
    case "run":
      return { ...view, run: applyRun(view.run, frame) }
    case "chunk":
    case "progress":
      return applyOutput(view, frame)
    case "result": {
      const { results, references = {}, withheld = false } = frame
      return { ...view, outcome: { kind: "result", value: singleValue(results), results, references, withheld } }
    }
    case "failure":
      return { ...view, outcome: { kind: "failure", failure: frame } }
    case "reset":
      return { ...EMPTY_VIEW, dagId: view.dagId, runId: view.runId, resetReason: frame.reason }
    case "end":
      return { ...view, end: frame, outcome: frame.outcome === "none" ? { kind: "none" } : view.outcome }
    default:
      return view
  }
}

function applySnapshot(view: RunView, frame: Snapshot): RunView {
  return {
    ...EMPTY_VIEW,
    dagId: frame.dag_id,
    runId: frame.run_id,
    run: frame.run,
    tasks: Object.fromEntries(frame.tasks.map((info) => [taskKey(info.task_id, info.map_index), info])),
    counts: frame.counts ?? {},
    resultTasks: frame.result_tasks,
    resetReason: view.resetReason,
  }
}

function applyTask(view: RunView, frame: TaskTransition): RunView {
  const counted = getOwn(view.counts, frame.task_id)
  if (counted) {
    const counts = { ...counted }
    const before = frame.previous_state ?? NO_STATUS
    const after = frame.state ?? NO_STATUS
    counts[before] = Math.max(0, (getOwn(counts, before) ?? 0) - 1)
    counts[after] = (getOwn(counts, after) ?? 0) + 1
    return { ...view, counts: { ...view.counts, [frame.task_id]: counts } }
  }
  const key = taskKey(frame.task_id, frame.map_index)
  const tasks = { ...view.tasks, [key]: applyInstance(getOwn(view.tasks, key), frame) }
  // Before it is expanded, a mapped task has one instance with map_index -1. Airflow gives that row a map_index.
  if (frame.map_index >= 0) delete tasks[frame.task_id]
  return { ...view, tasks }
}

function applyInstance(before: TaskInfo | undefined, frame: TaskTransition): TaskInfo {
  const { task_id, map_index, try_number, state, at } = frame
  // A cleared task has no state, and starts again.
  const isSameTry = before?.try_number === try_number && state !== null
  const startDate = isSameTry ? before.start_date : null
  return {
    task_id,
    map_index,
    try_number,
    state,
    start_date: state === "running" ? (startDate ?? at) : startDate,
    end_date: FINAL_TRY_STATES.has(state) ? at : null,
  }
}

function applyRun(before: RunInfo | null, frame: RunTransition): RunInfo {
  const { state, at, clear_number } = frame
  // A cleared run is queued again.
  const isRestarted = state === "queued" || state === null
  const startDate = isRestarted ? null : (before?.start_date ?? null)
  return {
    state,
    queued_at: state === "queued" ? at : (before?.queued_at ?? null),
    start_date: state === "running" ? (startDate ?? at) : startDate,
    end_date: FINAL_RUN_STATES.has(state) ? at : null,
    clear_number,
  }
}

function applyOutput(view: RunView, frame: Chunk | Progress): RunView {
  const key = taskKey(frame.task_id, frame.map_index)
  const before = getOwn(view.output, key)
  // A frame of an earlier try that arrives late.
  if (before && before.tryNumber > frame.try_number) return view
  const current: TaskOutput =
    before?.tryNumber === frame.try_number
      ? before
      : { tryNumber: frame.try_number, blocks: [], text: "", progress: null, withheld: false }
  return { ...view, output: { ...view.output, [key]: appendOutput(current, frame) } }
}

function appendOutput(before: TaskOutput, frame: Chunk | Progress): TaskOutput {
  if (frame.withheld) return { ...before, withheld: true }
  if (frame.type === "progress") {
    const { fraction = null, text = null } = frame.value ?? {}
    return { ...before, progress: { fraction, text } }
  }
  const text = typeof frame.value === "string" ? before.text + frame.value : before.text
  return { ...before, blocks: appendChunk(before.blocks, frame.value), text }
}

/** Copies only the last block: copying all chunks for each new one would be quadratic, minutes for a long output. */
function appendChunk(blocks: TaskOutput["blocks"], value: unknown): TaskOutput["blocks"] {
  const last = blocks.at(-1)
  return last === undefined || last.length >= BLOCK_SIZE
    ? [...blocks, [value]]
    : [...blocks.slice(0, -1), [...last, value]]
}

function singleValue(results: Readonly<Record<string, unknown>>): unknown {
  const values = Object.values(results)
  return values.length > 1 ? results : values[0]
}

/** A task id may be the name of an inherited member, such as `constructor`. */
function getOwn<Value>(record: Readonly<Record<string, Value>>, key: string): Value | undefined {
  return Object.hasOwn(record, key) ? record[key] : undefined
}
