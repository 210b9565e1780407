// The details of a view: what grows with the size of the DAG. Pure.
//
// A view is immutable, and frames may arrive hundreds of times a second. If each frame copied the tasks, the cost of a frame
// would grow with the DAG. So a new view has the details of an earlier one, and a list of the frames since then. They are
// applied when the details are read, all at once.

import { applyAgentFrame } from "./agent_parts.js"
import type { Chunk, Progress, TaskInfo, TaskTransition, Thinking, ToolCall, ToolResult } from "./protocol/frames.js"
import type { RunView, TaskOutput } from "./run_view.js"

type OutputFrame = Chunk | Progress | Thinking | ToolCall | ToolResult
type Detail = TaskTransition | OutputFrame

type Details = Required<Pick<RunView, "tasks" | "earlierIterations" | "counts" | "indexesAboveGap" | "output">>
type Facts = Omit<RunView, keyof Details>

/** The details while frames are applied. */
type Drafts = { readonly [Name in keyof Details]: Draft<Details[Name][string]> }

/** What a view is made of. */
interface Parts {
  readonly facts: Facts
  details: Details
  /** Those since the details. Later views append theirs to the same array. */
  frames: Detail[]
  /** How many of them are part of this view. */
  length: number
}

const PARTS = new WeakMap<RunView, Parts>()

/** Bounds the memory that a view takes whose details are not read. Each frame pays for a small part of their copy. */
const MAX_FRAMES = 4_096

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

/** For each task in a loop. */
const MAX_EARLIER_INSTANCES = 100

const NO_STATUS = "no_status"

/** Return the key of a task instance in a view: `task`, or `task[3]` for an instance of a mapped task. */
export function taskKey(taskId: string, mapIndex: number): string {
  return mapIndex < 0 ? taskId : `${taskId}[${mapIndex}]`
}

/** Return the view after a frame that changes its details. */
export function addDetail(view: RunView, frame: Detail): RunView {
  const parts = partsOf(view)
  if (parts.length >= MAX_FRAMES) applyFrames(parts)
  const { facts, details, length } = parts
  // Another view already follows this one.
  const frames = parts.frames.length > length ? parts.frames.slice(0, length) : parts.frames
  frames.push(frame)
  return createView({ facts, details, frames, length: length + 1 })
}

/** Return a view with other facts and the same details. */
export function changeFacts(view: RunView, change: Partial<Facts>): RunView {
  const parts = partsOf(view)
  return createView({ ...parts, facts: { ...parts.facts, ...change } })
}

function createView(parts: Parts): RunView {
  // The members are enumerable, so that a view can be copied, compared, cloned and stored like any object.
  const view: RunView = {
    ...parts.facts,
    get tasks() {
      return applyFrames(parts).tasks
    },
    get earlierIterations() {
      return applyFrames(parts).earlierIterations
    },
    get counts() {
      return applyFrames(parts).counts
    },
    get indexesAboveGap() {
      return applyFrames(parts).indexesAboveGap
    },
    get output() {
      return applyFrames(parts).output
    },
  }
  PARTS.set(view, parts)
  return view
}

/** A view that was not created here is one of a snapshot, or a copy. */
function partsOf(view: RunView): Parts {
  const known = PARTS.get(view)
  if (known) return known
  const { tasks, earlierIterations = {}, counts, indexesAboveGap = {}, output, ...facts } = view
  return { facts, details: { tasks, earlierIterations, counts, indexesAboveGap, output }, frames: [], length: 0 }
}

function applyFrames(parts: Parts): Details {
  if (parts.length > 0) {
    parts.details = applyDetails(parts.details, parts.frames.slice(0, parts.length))
    parts.frames = []
    parts.length = 0
  }
  return parts.details
}

function applyDetails(before: Details, frames: readonly Detail[]): Details {
  const draft: Drafts = {
    tasks: new Draft(before.tasks),
    earlierIterations: new Draft(before.earlierIterations),
    counts: new Draft(before.counts),
    indexesAboveGap: new Draft(before.indexesAboveGap),
    output: new Draft(before.output),
  }
  for (const frame of frames) {
    if (frame.type === "task") applyTask(draft, frame)
    else applyOutput(draft, frame)
  }
  const { tasks, earlierIterations, counts, indexesAboveGap, output } = draft
  return {
    tasks: tasks.record,
    earlierIterations: earlierIterations.record,
    counts: counts.record,
    indexesAboveGap: indexesAboveGap.record,
    output: output.record,
  }
}

function applyTask(draft: Drafts, frame: TaskTransition): void {
  const { tasks, counts, indexesAboveGap } = draft
  const { task_id, map_index } = frame
  if (typeof frame.iteration === "number" && !beginIteration(draft, frame, frame.iteration)) return
  const counted = counts.get(task_id)
  if (counted === undefined) {
    const key = taskKey(task_id, map_index)
    tasks.set(key, applyInstance(tasks.get(key), frame))
    // Before it is expanded, a mapped task has one instance with map_index -1. Airflow gives that row a map_index.
    if (map_index >= 0) tasks.delete(task_id)
    return
  }
  const change = countInstance(counted, indexesAboveGap.get(task_id) ?? [], frame)
  counts.set(task_id, change.counts)
  if (change.above) indexesAboveGap.set(task_id, change.above)
}

/** Move the instances of earlier iterations away. Returns false for a frame of an earlier iteration, which is applied here. */
function beginIteration(
  { tasks, earlierIterations, counts }: Drafts,
  frame: TaskTransition,
  iteration: number,
): boolean {
  const { task_id } = frame
  const shown = instancesOf(tasks, task_id)
  const newest = shown[0]?.iteration ?? iteration
  if (iteration === newest) return true
  const earlier = earlierIterations.get(task_id) ?? []
  if (iteration > newest) {
    counts.delete(task_id)
    for (const info of shown) tasks.delete(taskKey(task_id, info.map_index))
    earlierIterations.set(task_id, [...earlier, ...shown].slice(-MAX_EARLIER_INSTANCES))
    return true
  }
  const index = earlier.findIndex((one) => one.iteration === iteration && one.map_index === frame.map_index)
  const changed = applyInstance(earlier[index], frame)
  if (index >= 0)
    earlierIterations.set(
      task_id,
      earlier.map((one, at) => (at === index ? changed : one)),
    )
  return false
}

/** Return the instances of a task, which Airflow numbers from 0 without gaps where it is mapped. */
function instancesOf(tasks: Drafts["tasks"], taskId: string): TaskInfo[] {
  const instances: TaskInfo[] = []
  for (let index = -1; ; index++) {
    const info = tasks.get(taskKey(taskId, index))
    if (info !== undefined) instances.push(info)
    else if (index >= 0) return instances
  }
}

/**
 * Count the transition of one of many instances.
 *
 * A frame of a new instance looks like one of an instance without a state. But Airflow numbers the instances of a mapped task
 * from 0 without gaps: new is what is above those that are counted.
 */
function countInstance(
  before: Readonly<Record<string, number>>,
  above: readonly number[],
  { map_index, state, previous_state }: TaskTransition,
): { counts: Record<string, number>; above?: number[] } {
  const counts = { ...before }
  const count = (name: string | null, change: number) => {
    const key = name ?? NO_STATUS
    counts[key] = Math.max(0, (counts[key] ?? 0) + change)
  }
  count(state, 1)
  let gap = Object.values(before).reduce((sum, one) => sum + one, 0) - above.length
  if (map_index < gap || above.includes(map_index)) {
    count(previous_state, -1)
    return { counts }
  }
  const others = new Set([...above, map_index])
  while (others.delete(gap)) gap++
  return { counts, above: [...others] }
}

function applyInstance(before: TaskInfo | undefined, frame: TaskTransition): TaskInfo {
  const { task_id, map_index, try_number, state, at, iteration } = frame
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
    ...(typeof iteration === "number" && { iteration }),
  }
}

function applyOutput({ output }: Drafts, frame: OutputFrame): void {
  const { task_id, map_index, try_number: tryNumber, iteration: ofFrame } = frame
  const iteration = ofFrame ?? undefined
  const key = taskKey(task_id, map_index)
  const before = output.get(key)
  const isSameIteration = before?.iteration === iteration
  // A frame of an earlier try that arrives late, or of an earlier iteration.
  if (before && isSameIteration && before.tryNumber > tryNumber) return
  if (before && !isSameIteration && (before.iteration ?? -1) > (iteration ?? -1)) return
  const current: TaskOutput =
    before && isSameIteration && before.tryNumber === tryNumber
      ? before
      : {
          tryNumber,
          ...(iteration !== undefined && { iteration }),
          blocks: [],
          text: "",
          progress: null,
          withheld: false,
        }
  output.set(key, appendOutput(current, frame))
}

function appendOutput(before: TaskOutput, frame: OutputFrame): TaskOutput {
  if (frame.withheld) return { ...before, withheld: true }
  if (frame.type === "progress") {
    const { fraction = null, text = null } = frame.value ?? {}
    return { ...before, progress: { fraction, text } }
  }
  if (frame.type !== "chunk") {
    return { ...before, agent: applyAgentFrame(before.agent ?? [], frame, before.text.length) }
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

/** A record that is copied when it is first changed. A Map, since a task id may be the name of an inherited member. */
class Draft<Value> {
  readonly #before: Readonly<Record<string, Value>>
  #map: Map<string, Value> | null = null

  constructor(before: Readonly<Record<string, Value>>) {
    this.#before = before
  }

  get record(): Readonly<Record<string, Value>> {
    return this.#map === null ? this.#before : Object.fromEntries(this.#map)
  }

  get(key: string): Value | undefined {
    if (this.#map !== null) return this.#map.get(key)
    return Object.hasOwn(this.#before, key) ? this.#before[key] : undefined
  }

  set(key: string, value: Value): void {
    this.#change().set(key, value)
  }

  delete(key: string): void {
    if (this.get(key) !== undefined) this.#change().delete(key)
  }

  #change(): Map<string, Value> {
    this.#map ??= new Map(Object.entries(this.#before))
    return this.#map
  }
}
