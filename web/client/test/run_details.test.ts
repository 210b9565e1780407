// What grows with the size of a DAG: it is right after each frame, whether it is read or not, and costs the same for all sizes.

import { expect, test } from "vitest"
import { EMPTY_VIEW, type Frame, type RunView, reduce, type TaskInfo } from "../src/index.js"
import { chunk, progress, run, snapshot, task } from "./support/frames.js"

const STATES = [null, "scheduled", "queued", "running", "success", "failed", "skipped", "removed"]

/** A linear congruential generator: each seed is another history, and a failure can be repeated. */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state * 1103515245 + 12345) % 2 ** 31
    return Math.floor((state / 2 ** 31) * below)
  }
}

/** The instances of one mapped task in the database, and the frames of their changes. */
class MappedTask {
  readonly #states = new Map<number, string | null>()
  #seq = 0

  constructor(count: number) {
    for (let index = 0; index < count; index++) this.#states.set(index, null)
  }

  get size(): number {
    return this.#states.size
  }

  change(index: number, state: string | null): Frame {
    const previous_state = this.#states.get(index) ?? null
    this.#states.set(index, state)
    return task(++this.#seq, state, { map_index: index, previous_state })
  }

  counts(): Record<string, number> {
    const counts: Record<string, number> = {}
    for (const state of this.#states.values()) counts[state ?? "no_status"] = (counts[state ?? "no_status"] ?? 0) + 1
    return counts
  }

  snapshot(): RunView {
    return reduce(EMPTY_VIEW, snapshot({ tasks: [], counts: { answer: this.counts() } }))
  }
}

const countsOf = ({ counts }: RunView) =>
  Object.fromEntries(Object.entries(counts.answer ?? {}).filter(([, count]) => count > 0))

/** Returns the changes of one transaction: of one instance, or of new ones, whose rows are inserted in any order. */
function nextChanges(mapped: MappedTask, random: (below: number) => number): Frame[] {
  if (random(4) > 0) return [mapped.change(random(mapped.size), STATES[random(STATES.length)] ?? null)]
  const first = mapped.size
  const order = [[0], [0, 1], [1, 0], [2, 0, 1], [3, 1, 0, 2]][random(5)] ?? []
  return order.map((offset) => mapped.change(first + offset, STATES[random(2)] ?? null))
}

test.each([1, 2, 3, 4, 5, 6, 7, 8])("counts are those of the database after each transaction (%i)", (seed) => {
  const random = randomNumbers(seed)
  const mapped = new MappedTask(150)
  let view = mapped.snapshot()
  for (let step = 0; step < 200; step++) {
    view = nextChanges(mapped, random).reduce(reduce, view)
    // Unread views are not applied yet.
    if (random(3) > 0) expect(countsOf(view)).toEqual(mapped.counts())
    // A bookmark is stored as JSON.
    if (random(20) === 0) view = JSON.parse(JSON.stringify(view)) as RunView
  }
  expect(countsOf(view)).toEqual(mapped.counts())
})

test("an expansion counts new instances without taking others away", () => {
  const mapped = new MappedTask(150)
  let view = mapped.snapshot()
  for (const index of [152, 150, 151]) view = reduce(view, mapped.change(index, null))
  expect(view.counts.answer).toEqual({ no_status: 153 })
  expect(view.indexesAboveGap).toEqual({ answer: [] })
})

test("a view stays as it is when frames follow", () => {
  const before = reduce(reduce(EMPTY_VIEW, snapshot()), task(1, "running"))
  const after = [task(2, "success"), chunk(3, 0, "x"), progress(4, 1, 0.5), run(5, "success")].reduce<RunView>(
    reduce,
    before,
  )
  expect(after.tasks.answer?.state).toBe("success")
  expect(after.output.answer?.text).toBe("x")
  expect(after.run?.state).toBe("success")
  expect(before.tasks.answer?.state).toBe("running")
  expect(before.output).toEqual({})
  expect(before.run?.state).toBe("running")
})

test("a view is plain data: it can be copied, cloned, stored and continued", () => {
  const view = [snapshot(), task(1, "running"), chunk(2, 0, "a")].reduce<RunView>(reduce, EMPTY_VIEW)
  for (const copy of [{ ...view }, structuredClone(view), JSON.parse(JSON.stringify(view)) as RunView]) {
    expect(copy).toEqual(view)
    expect(reduce(copy, chunk(3, 1, "b")).output.answer?.text).toBe("ab")
  }
})

test("output does not change the tasks, and tasks do not change the output", () => {
  const view = [snapshot(), task(1, "running"), chunk(2, 0, "a")].reduce<RunView>(reduce, EMPTY_VIEW)
  const { tasks, output } = view
  expect(reduce(view, chunk(3, 1, "b")).tasks).toBe(tasks)
  expect(reduce(view, task(3, "success")).output).toBe(output)
})

/** Milliseconds for many frames of a DAG with so many tasks; the fastest of some rounds. */
function timeOf(tasks: number, frames: number): number {
  const infos: TaskInfo[] = Array.from({ length: tasks }, (_, number) => {
    return { task_id: `t${number}`, map_index: -1, try_number: 1, state: null, start_date: null, end_date: null }
  })
  const changes = Array.from({ length: frames }, (_, seq) => task(seq, "running", { task_id: `t${seq % tasks}` }))
  let fastest = Number.POSITIVE_INFINITY
  for (let round = 0; round < 3; round++) {
    let view = reduce(EMPTY_VIEW, snapshot({ tasks: infos }))
    const start = performance.now()
    for (const change of changes) view = reduce(view, change)
    expect(Object.keys(view.tasks).length).toBe(tasks)
    fastest = Math.min(fastest, performance.now() - start)
  }
  return fastest
}

test("a frame of a DAG with 10,000 tasks costs about as much as one of a small DAG", () => {
  timeOf(100, 1_000)
  // With a copy for each frame, the ratio is about 100.
  expect(timeOf(10_000, 10_000) / timeOf(100, 10_000)).toBeLessThan(15)
})
