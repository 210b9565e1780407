import { expect, test } from "vitest"
import { chunksOf, EMPTY_VIEW, type Frame, type RunView, reduce, taskKey } from "../src/index.js"
import { chunk, end, failure, progress, reset, result, run, snapshot, task } from "./support/frames.js"

const fold = (...frames: Frame[]): RunView => frames.reduce(reduce, EMPTY_VIEW)

test("a snapshot replaces the view", () => {
  const view = fold(task(1, "failed"), snapshot({ counts: { squares: { success: 3 } } }))
  expect(view.runId).toBe("r1")
  expect(view.run?.state).toBe("running")
  expect(Object.keys(view.tasks)).toEqual(["answer"])
  expect(view.tasks.answer?.state).toBe("queued")
  expect(view.counts).toEqual({ squares: { success: 3 } })
  expect(view.resultTasks).toEqual(["answer"])
})

test("a task starts when it runs, ends with its try, and starts again with the next one", () => {
  let view = fold(snapshot(), task(1, "running"))
  expect(view.tasks.answer).toMatchObject({ state: "running", start_date: "2026-11-22T14:22:01Z", end_date: null })
  view = reduce(view, task(5, "up_for_retry"))
  expect(view.tasks.answer).toMatchObject({ start_date: "2026-11-22T14:22:01Z", end_date: "2026-11-22T14:22:05Z" })
  view = reduce(view, task(6, "queued", { try_number: 2 }))
  expect(view.tasks.answer).toMatchObject({ try_number: 2, start_date: null, end_date: null })
  view = [task(7, "running", { try_number: 2 }), task(8, "deferred", { try_number: 2 })].reduce(reduce, view)
  expect(view.tasks.answer).toMatchObject({ state: "deferred", start_date: "2026-11-22T14:22:07Z", end_date: null })
  view = reduce(view, task(9, null, { try_number: 2 }))
  expect(view.tasks.answer).toMatchObject({ state: null, start_date: null })
})

test("an instance of a mapped task replaces the unmapped one", () => {
  const view = fold(snapshot(), task(1, "scheduled", { map_index: 0 }), task(2, "scheduled", { map_index: 1 }))
  expect(Object.keys(view.tasks)).toEqual([taskKey("answer", 0), taskKey("answer", 1)])
})

test("a mapped task with too many instances has counts only", () => {
  const counted = snapshot({ tasks: [], counts: { answer: { no_status: 2, running: 1 } } })
  const view = fold(
    counted,
    task(1, "success", { map_index: 2, previous_state: "running" }),
    task(2, "scheduled", { map_index: 1 }),
  )
  expect(view.counts.answer).toEqual({ no_status: 1, running: 0, success: 1, scheduled: 1 })
  expect(view.tasks).toEqual({})
})

test("a task in a loop shows its newest iteration, and keeps the earlier ones", () => {
  const info = (iteration: number, state: string | null, map_index = -1) => ({
    ...{ task_id: "answer", try_number: 1, start_date: null, end_date: null },
    ...{ map_index, state, iteration },
  })
  let view = fold(snapshot({ tasks: [info(0, "success", 0), info(0, "success", 1), info(1, "running")] }))
  expect(view.tasks).toEqual({ answer: info(1, "running") })
  expect(view.earlierIterations).toEqual({ answer: [info(0, "success", 0), info(0, "success", 1)] })

  view = [
    chunk(1, 0, "one", { iteration: 1 }),
    task(2, "success", { iteration: 1 }),
    task(3, null, { iteration: 2 }),
    chunk(4, 0, "two", { iteration: 2 }),
    chunk(5, 1, "late", { iteration: 1 }),
  ].reduce(reduce, view)
  expect(view.tasks.answer).toMatchObject({ state: null, iteration: 2 })
  expect(view.earlierIterations?.answer?.map((one) => one.iteration)).toEqual([0, 0, 1])
  expect(view.output.answer).toMatchObject({ text: "two", iteration: 2 })

  view = reduce(view, task(6, "failed", { iteration: 0, map_index: 1 }))
  expect(view.earlierIterations?.answer?.map((one) => one.state)).toEqual(["success", "failed", "success"])
  expect(Object.keys(view.tasks)).toEqual(["answer"])
})

test("task ids may be names of inherited members", () => {
  const names = ["constructor", "toString", "__proto__"]
  const view = fold(
    snapshot({ tasks: [] }),
    ...names.map((task_id, seq) => task(seq, "running", { task_id })),
    ...names.map((task_id, seq) => chunk(seq, 0, "x", { task_id })),
  )
  expect(Object.keys(view.tasks)).toEqual(names)
  expect(Object.values(view.output).map((output) => output.text)).toEqual(["x", "x", "x"])
})

test("a run is queued, runs, ends, and is cleared", () => {
  let view = fold(snapshot(), run(9, "success"))
  expect(view.run).toMatchObject({ state: "success", end_date: "2026-11-22T14:22:09Z" })
  view = reduce(view, run(10, "queued", { clear_number: 1 }))
  expect(view.run).toMatchObject({ queued_at: "2026-11-22T14:22:10Z", start_date: null, end_date: null })
  view = reduce(view, run(11, "running", { clear_number: 1 }))
  expect(view.run).toMatchObject({ start_date: "2026-11-22T14:22:11Z", clear_number: 1 })
})

test("the output of a task is joined, by instance", () => {
  const view = fold(
    snapshot(),
    progress(1, 0, 0.1, "searching"),
    chunk(2, 1, "Air "),
    chunk(2, 2, { source: "a book" }),
    chunk(3, 3, "scatters"),
    chunk(4, 0, "other", { map_index: 3 }),
  )
  expect(view.output.answer).toEqual({
    tryNumber: 1,
    blocks: [["Air ", { source: "a book" }, "scatters"]],
    text: "Air scatters",
    progress: { fraction: 0.1, text: "searching" },
    withheld: false,
  })
  expect(view.output["answer[3]"]?.text).toBe("other")
})

test("chunks may be lists, and there may be many", () => {
  let view = fold(snapshot())
  for (let index = 0; index < 50_000; index++) view = reduce(view, chunk(index, index, [index]))
  const output = view.output.answer
  const chunks = output === undefined ? [] : chunksOf(output)
  expect(chunks.length).toBe(50_000)
  expect(chunks[49_999]).toEqual([49_999])
})

test("a later try replaces the output, and frames of earlier tries are ignored", () => {
  const view = fold(
    snapshot(),
    chunk(1, 0, "half an "),
    chunk(2, 0, "A whole one", { try_number: 2 }),
    chunk(1, 1, "answer"),
  )
  expect(view.output.answer).toMatchObject({ tryNumber: 2, text: "A whole one" })
})

test("withheld values are marked", () => {
  const { value: _, ...withoutValue } = chunk(1, 0, "")
  const view = fold(snapshot(), { ...withoutValue, withheld: true })
  expect(view.output.answer).toMatchObject({ withheld: true, blocks: [], text: "" })
})

test("a reset clears all but the run ids, and keeps the reason", () => {
  const view = fold(snapshot(), chunk(1, 0, "half"), result(), reset("retried"))
  expect(view).toEqual({ ...EMPTY_VIEW, dagId: "chat", runId: "r1", resetReason: "retried" })
  expect(reduce(view, snapshot()).resetReason).toBe("retried")
})

test("the outcome is one value, several, none, or a failure", () => {
  expect(fold(snapshot(), result({ text: "because" })).outcome).toMatchObject({
    kind: "result",
    value: { text: "because" },
  })
  expect(fold(result(1, { results: { a: 1, b: [2] } })).outcome).toMatchObject({ value: { a: 1, b: [2] } })
  expect(fold(failure()).outcome).toMatchObject({ kind: "failure", failure: { reason: "task_failed" } })
  expect(fold(snapshot(), end("none")).outcome).toEqual({ kind: "none", reason: null, taskId: null })
  const skipped: Frame = { ...end("none"), reason: "task_skipped", task_id: "answer" } as Frame
  expect(fold(snapshot(), skipped).outcome).toEqual({ kind: "none", reason: "task_skipped", taskId: "answer" })
  const incomplete = result([1, 9], { map_indexes: { answer: [0, 2] } })
  expect(fold(incomplete).outcome).toMatchObject({ value: [1, 9], mapIndexes: { answer: [0, 2] } })
  expect(fold(result(), end("result")).outcome).toMatchObject({ kind: "result", value: 42 })
  const large = { answer: { href: "/x", bytes: 9 } }
  expect(fold(result(1, { results: {}, references: large })).outcome).toMatchObject({
    value: undefined,
    references: large,
  })
})

test("unknown frames and frames about the connection change nothing", () => {
  const view = fold(snapshot())
  expect(reduce(view, { type: "ping" })).toBe(view)
  expect(reduce(view, { type: "resumed", since: "x" })).toBe(view)
  expect(reduce(view, JSON.parse('{"type":"hologram"}'))).toBe(view)
})

test("a view is plain JSON", () => {
  const view = fold(snapshot(), task(1, "running"), chunk(2, 0, "Air"), result(), end())
  expect(JSON.parse(JSON.stringify(view))).toEqual(view)
})

test("a frame never changes the view before it", () => {
  const freeze = <Value>(value: Value): Value => {
    if (typeof value === "object" && value !== null) Object.values(Object.freeze(value)).forEach(freeze)
    return value
  }
  const frames = [snapshot(), task(1, "running"), chunk(2, 0, "a"), run(3, "success"), result(), reset("cleared")]
  let view = EMPTY_VIEW
  for (const frame of frames) view = freeze(reduce(view, freeze(frame)))
  expect(view.resetReason).toBe("cleared")
})
