// The view of a run: its frames, folded into one object. Pure: a view is immutable plain JSON; each frame creates a new one
// in constant time (run_details.ts).

import type { AgentPart } from "./agent_parts.js"
import type {
  End,
  Failure,
  Frame,
  Input,
  InputAnswered,
  Reference,
  RunInfo,
  RunTransition,
  Snapshot,
  TaskInfo,
  TaskTransition,
} from "./protocol/frames.js"
import { addDetail, changeFacts, taskKey } from "./run_details.js"
import { applyToInputs, type InputRequests } from "./run_inputs.js"

/** What one task instance has emitted in its current try. */
export interface TaskOutput {
  readonly tryNumber: number
  /** Iteration of the task loop around the task; absent outside of loops. */
  readonly iteration?: number
  /** Values of its chunks, oldest first, in blocks; `chunksOf` joins them. */
  readonly blocks: readonly (readonly unknown[])[]
  /** All chunks that are strings, joined. */
  readonly text: string
  /** The last progress that it reported. */
  readonly progress: { readonly fraction: number | null; readonly text: string | null } | null
  /** Thinking and tool calls of an AI agent, oldest first; absent if there are none. */
  readonly agent?: readonly AgentPart[]
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
      /** By mapped task, the `map_index` of each value of its list; only if instances were skipped. */
      readonly mapIndexes: Readonly<Record<string, readonly number[]>>
      /** Whether there are values that the caller may not read. */
      readonly withheld: boolean
    }
  | { readonly kind: "failure"; readonly failure: Failure }
  /** The run ended without a result, and did not fail. */
  | {
      readonly kind: "none"
      /** `task_skipped`, `no_result_task`, `run_ended`, or a reason of a later server; `null` from an older server. */
      readonly reason: string | null
      /** The first result task that was skipped; only with `task_skipped`. */
      readonly taskId: string | null
    }

/** State, output and outcome of a run. */
export interface RunView {
  readonly dagId: string | null
  readonly runId: string | null
  /** State and times of the run; `null` before the first snapshot. */
  readonly run: RunInfo | null
  /** Task instances, by `taskKey`. Of a task in a loop, those of its newest iteration. */
  readonly tasks: Readonly<Record<string, TaskInfo>>
  /** By task in a loop, its instances in earlier iterations, oldest first: as many as are known, at most 100. */
  readonly earlierIterations?: Readonly<Record<string, readonly TaskInfo[]>>
  /** Number of instances by task and state, for mapped tasks with too many instances to list. */
  readonly counts: Readonly<Record<string, Readonly<Record<string, number>>>>
  /** Of tasks in `counts`: instances whose `map_index` is above a gap. All below the gap are counted. */
  readonly indexesAboveGap?: Readonly<Record<string, readonly number[]>>
  /** Result tasks, as far as they are known. */
  readonly resultTasks: readonly string[]
  /** What tasks have emitted, by `taskKey`; in a loop, in the newest iteration. */
  readonly output: Readonly<Record<string, TaskOutput>>
  /** What tasks ask people in their current tries, by `taskKey`; absent from views of earlier versions. */
  readonly inputs?: InputRequests
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
  inputs: {},
  outcome: { kind: "pending" },
  resetReason: null,
  end: null,
}

/** @deprecated Use `EMPTY_VIEW`. */
export const NOTHING_KNOWN: RunView = EMPTY_VIEW

const FINAL_RUN_STATES = new Set<string | null>(["success", "failed"])

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
    case "input":
    case "input_answered":
      return applyInput(frame.type === "task" ? addDetail(view, frame) : view, frame)
    case "chunk":
    case "progress":
    case "thinking":
    case "tool_call":
    case "tool_result":
      return addDetail(view, frame)
    case "run":
      return changeFacts(view, { run: applyRun(view.run, frame) })
    case "result": {
      const { results, references = {}, map_indexes: mapIndexes = {}, withheld = false } = frame
      const value = singleValue(results)
      return changeFacts(view, { outcome: { kind: "result", value, results, references, mapIndexes, withheld } })
    }
    case "failure":
      return changeFacts(view, { outcome: { kind: "failure", failure: frame } })
    case "reset":
      return { ...EMPTY_VIEW, dagId: view.dagId, runId: view.runId, resetReason: frame.reason }
    case "end": {
      const { outcome, reason = null, task_id: taskId = null } = frame
      return changeFacts(view, { end: frame, ...(outcome === "none" && { outcome: { kind: "none", reason, taskId } }) })
    }
    default:
      return view
  }
}

function applyInput(view: RunView, frame: Input | InputAnswered | TaskTransition): RunView {
  const before = view.inputs ?? {}
  const inputs = applyToInputs(before, frame)
  return inputs === before ? view : changeFacts(view, { inputs })
}

function applySnapshot(view: RunView, frame: Snapshot): RunView {
  return {
    ...EMPTY_VIEW,
    dagId: frame.dag_id,
    runId: frame.run_id,
    run: frame.run,
    ...splitIterations(frame.tasks),
    counts: frame.counts ?? {},
    resultTasks: frame.result_tasks,
    resetReason: view.resetReason,
  }
}

function splitIterations(tasks: readonly TaskInfo[]): Pick<RunView, "tasks" | "earlierIterations"> {
  const newest = new Map<string, number>()
  for (const { task_id, iteration } of tasks) {
    if (typeof iteration === "number") newest.set(task_id, Math.max(iteration, newest.get(task_id) ?? 0))
  }
  const isEarlier = ({ task_id, iteration }: TaskInfo) =>
    typeof iteration === "number" && iteration < (newest.get(task_id) ?? 0)
  const current = tasks.filter((info) => !isEarlier(info))
  const earlier = new Map<string, TaskInfo[]>()
  for (const info of tasks.filter(isEarlier)) earlier.set(info.task_id, [...(earlier.get(info.task_id) ?? []), info])
  return {
    tasks: Object.fromEntries(current.map((info) => [taskKey(info.task_id, info.map_index), info])),
    ...(earlier.size > 0 && { earlierIterations: Object.fromEntries(earlier) }),
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

function singleValue(results: Readonly<Record<string, unknown>>): unknown {
  const values = Object.values(results)
  return values.length > 1 ? results : values[0]
}
