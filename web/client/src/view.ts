// What is known of a run, folded from its frames. Pure: a view is plain JSON and never changes; each frame gives another.

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
} from "./frames.js"

/** What one task instance has said from inside, in its present try. */
export interface Output {
  readonly tryNumber: number
  /** Its chunks, oldest first, in blocks; `chunksOf` joins them. */
  readonly blocks: readonly (readonly unknown[])[]
  /** Those of its chunks that are text, joined. */
  readonly text: string
  /** The last that it told of its progress. */
  readonly progress: { readonly fraction: number | null; readonly text: string | null } | null
  /** Whether it has said something that the caller may not read. */
  readonly withheld: boolean
}

/** How the run ended for the caller. A run may go on after that, and people can take it back. */
export type Outcome =
  | { readonly kind: "pending" }
  | {
      readonly kind: "result"
      /** What the result task returned; of several, an object by task; `undefined` where it is withheld or too large. */
      readonly value: unknown
      readonly results: Readonly<Record<string, unknown>>
      /** Where to get what was too large to be sent, by task. */
      readonly references: Readonly<Record<string, Reference>>
      /** Whether there are values that the caller may not read. */
      readonly withheld: boolean
    }
  | { readonly kind: "failure"; readonly failure: Failure }
  /** The run ended, and no task answers. */
  | { readonly kind: "none" }

/** All that is known of a run. */
export interface RunView {
  readonly dagId: string | null
  readonly runId: string | null
  /** The run itself; `null` before the first snapshot. */
  readonly run: RunInfo | null
  /** Task instances, by `taskKey`. */
  readonly tasks: Readonly<Record<string, TaskInfo>>
  /** Instances by state, of mapped tasks with too many to list. */
  readonly counts: Readonly<Record<string, Readonly<Record<string, number>>>>
  /** The tasks that answer, as far as they are known. */
  readonly resultTasks: readonly string[]
  /** What tasks have said from inside, by `taskKey`. */
  readonly output: Readonly<Record<string, Output>>
  readonly outcome: Outcome
  /** Why what was told before was taken back, if it was. */
  readonly resetReason: string | null
  /** The last frame of the stream, once it has come. */
  readonly end: End | null
}

/** The view of a run of which nothing is known. */
export const NOTHING_KNOWN: RunView = {
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

const RUN_FINAL = new Set<string | null>(["success", "failed"])

/** States in which a try of a task has ended (`airflow.utils.state.State.finished`, and what waits for another try). */
const TRY_OVER = new Set<string | null>(["success", "failed", "upstream_failed", "skipped", "removed", "up_for_retry"])

/** Chunks in a block. */
const BLOCK = 256

const NO_STATUS = "no_status"

/** The name of a task instance in a view: `task`, or `task[3]` where the task is mapped. */
export function taskKey(taskId: string, mapIndex: number): string {
  return mapIndex < 0 ? taskId : `${taskId}[${mapIndex}]`
}

/** The values of all chunks, oldest first. */
export function chunksOf(output: Output): unknown[] {
  return output.blocks.flat(1)
}

/** Returns the view after a frame. What does not concern the run, or is not known, changes nothing. */
export function reduce(view: RunView, frame: Frame): RunView {
  switch (frame.type) {
    case "snapshot":
      return snapshot(view, frame)
    case "task":
      return task(view, frame)
    case "run":
      return { ...view, run: run(view.run, frame) }
    case "chunk":
    case "progress":
      return output(view, frame)
    case "result": {
      const { results, references = {}, withheld = false } = frame
      return { ...view, outcome: { kind: "result", value: value(results), results, references, withheld } }
    }
    case "failure":
      return { ...view, outcome: { kind: "failure", failure: frame } }
    case "reset":
      return { ...NOTHING_KNOWN, dagId: view.dagId, runId: view.runId, resetReason: frame.reason }
    case "end":
      return { ...view, end: frame, outcome: frame.outcome === "none" ? { kind: "none" } : view.outcome }
    default:
      return view
  }
}

function snapshot(view: RunView, frame: Snapshot): RunView {
  return {
    ...NOTHING_KNOWN,
    dagId: frame.dag_id,
    runId: frame.run_id,
    run: frame.run,
    tasks: Object.fromEntries(frame.tasks.map((info) => [taskKey(info.task_id, info.map_index), info])),
    counts: frame.counts ?? {},
    resultTasks: frame.result_tasks,
    resetReason: view.resetReason,
  }
}

function task(view: RunView, frame: TaskTransition): RunView {
  const counted = own(view.counts, frame.task_id)
  if (counted) {
    const counts = { ...counted }
    const before = frame.previous_state ?? NO_STATUS
    const after = frame.state ?? NO_STATUS
    counts[before] = Math.max(0, (own(counts, before) ?? 0) - 1)
    counts[after] = (own(counts, after) ?? 0) + 1
    return { ...view, counts: { ...view.counts, [frame.task_id]: counts } }
  }
  const key = taskKey(frame.task_id, frame.map_index)
  const tasks = { ...view.tasks, [key]: instance(own(view.tasks, key), frame) }
  // An instance of a mapped task takes the place of the one that stood for all of them.
  if (frame.map_index >= 0) delete tasks[frame.task_id]
  return { ...view, tasks }
}

function instance(before: TaskInfo | undefined, frame: TaskTransition): TaskInfo {
  const { task_id, map_index, try_number, state, at } = frame
  const same = before?.try_number === try_number && state !== null
  const began = same ? before.start_date : null
  return {
    task_id,
    map_index,
    try_number,
    state,
    start_date: state === "running" ? (began ?? at) : began,
    end_date: TRY_OVER.has(state) ? at : null,
  }
}

function run(before: RunInfo | null, frame: RunTransition): RunInfo {
  const { state, at, clear_number } = frame
  const again = state === "queued" || state === null
  const began = again ? null : (before?.start_date ?? null)
  return {
    state,
    queued_at: state === "queued" ? at : (before?.queued_at ?? null),
    start_date: state === "running" ? (began ?? at) : began,
    end_date: RUN_FINAL.has(state) ? at : null,
    clear_number,
  }
}

function output(view: RunView, frame: Chunk | Progress): RunView {
  const key = taskKey(frame.task_id, frame.map_index)
  const before = own(view.output, key)
  // What an earlier try had said is worth nothing once a later one speaks.
  if (before && before.tryNumber > frame.try_number) return view
  const kept: Output =
    before?.tryNumber === frame.try_number
      ? before
      : { tryNumber: frame.try_number, blocks: [], text: "", progress: null, withheld: false }
  return { ...view, output: { ...view.output, [key]: said(kept, frame) } }
}

function said(before: Output, frame: Chunk | Progress): Output {
  if (frame.withheld) return { ...before, withheld: true }
  if (frame.type === "progress") {
    const { fraction = null, text = null } = frame.value ?? {}
    return { ...before, progress: { fraction, text } }
  }
  const text = typeof frame.value === "string" ? before.text + frame.value : before.text
  return { ...before, blocks: appended(before.blocks, frame.value), text }
}

/** To copy all that was said with each chunk would take minutes for a long answer: the last block is enough. */
function appended(blocks: Output["blocks"], value: unknown): Output["blocks"] {
  const last = blocks.at(-1)
  return last === undefined || last.length >= BLOCK ? [...blocks, [value]] : [...blocks.slice(0, -1), [...last, value]]
}

function value(results: Readonly<Record<string, unknown>>): unknown {
  const values = Object.values(results)
  return values.length > 1 ? results : values[0]
}

/** Tasks may be called `constructor`. */
function own<Value>(record: Readonly<Record<string, Value>>, key: string): Value | undefined {
  return Object.hasOwn(record, key) ? record[key] : undefined
}
