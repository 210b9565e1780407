import { afterEach, expect, test } from "vitest"
import { EMPTY_VIEW, type Frame, type Input, type InputAnswered, type RunView, reduce } from "../src/index.js"
import { snapshot, task } from "./support/frames.js"
import { createTestClient } from "./support/test_client.js"
import { respondWithStatus, serve } from "./support/test_server.js"

const fold = (...frames: Frame[]): RunView => frames.reduce(reduce, EMPTY_VIEW)

const KEY = { dag_id: "chat", run_id: "r1", task_id: "answer", map_index: -1, try_number: 1 }
const ASKED_AT = "2026-11-22T14:22:01Z"
const input: Input = { type: "input", ...KEY, asked_at: ASKED_AT, subject: "Send it?", options: ["Yes", "No"] }
const answered: InputAnswered = {
  type: "input_answered",
  ...KEY,
  asked_at: ASKED_AT,
  answered_at: "2026-11-22T14:22:09Z",
  chosen_options: ["Yes"],
}

const closing: { close(): unknown }[] = []
afterEach(async () => {
  for (const one of closing.splice(0)) await one.close()
})

test("a question is open until it is answered, also while the task that it resumes proceeds", () => {
  const asked = fold(snapshot(), task(1, "running"), input, task(2, "awaiting_input"))
  expect(asked.inputs).toEqual({ answer: { request: input, answer: null, isOpen: true } })
  const resumed = fold(snapshot(), input, task(3, "scheduled"))
  expect(resumed.inputs?.answer).toMatchObject({ answer: null, isOpen: false })
  const done = [answered, task(4, "success")].reduce(reduce, resumed)
  expect(done.inputs).toEqual({ answer: { request: input, answer: answered, isOpen: false } })
  expect(done.tasks.answer?.state).toBe("success")
})

test("a cleared or retried task loses its question and its answer", () => {
  for (const frame of [task(3, null), task(3, "up_for_retry"), task(3, "running", { try_number: 2 })]) {
    expect(fold(snapshot(), input, answered, frame).inputs).toEqual({})
  }
  expect(fold(snapshot(), input, snapshot()).inputs).toEqual({})
})

test("an answer to another question changes nothing, and a view of an earlier version has none", () => {
  const view = fold(snapshot(), input, { ...answered, asked_at: "2026-11-22T14:00:00Z" })
  expect(view.inputs?.answer?.isOpen).toBe(true)
  const { inputs: _, ...earlier } = EMPTY_VIEW
  expect(reduce(earlier, task(1, "running")).inputs).toBeUndefined()
  expect(reduce(earlier, input).inputs?.answer?.request).toBe(input)
})

test("each iteration of a loop has a question of its own", async () => {
  const inLoop = { ...input, iteration: 1 }
  const view = fold(snapshot(), { ...input, iteration: 0 }, inLoop, { ...answered, iteration: 0 })
  expect(Object.values(view.inputs ?? {}).map((one) => [one.request.iteration, one.isOpen])).toEqual([
    [0, false],
    [1, true],
  ])
  const left = fold(snapshot(), { ...input, iteration: 0 }, inLoop, task(3, null, { iteration: 1 }))
  expect(Object.values(left.inputs ?? {}).map((one) => one.request.iteration)).toEqual([0])
  const server = await serve(respondWithStatus(200, {}, "{}"))
  closing.push(server)
  await createTestClient({ baseUrl: server.url }).client.answer(inLoop, { chosenOptions: ["Yes"] })
  expect(server.requests[0]?.url.search).toBe("?map_index=-1&iteration=1")
})

test("an answer is sent, and a refusal has its status", async () => {
  const server = await serve(respondWithStatus(200, {}, "{}"), respondWithStatus(409, {}, '{"detail": "Too late"}'))
  closing.push(server)
  const { client } = createTestClient({ baseUrl: server.url })
  await client.answer(input, { chosenOptions: ["Yes"] })
  const [{ request, url }] = server.requests as [(typeof server.requests)[0]]
  expect(`${request.method} ${url.pathname}${url.search}`).toBe(
    "POST /api/v2/dags/chat/dagRuns/r1/taskInstances/answer/input?map_index=-1",
  )
  await expect(client.answer(input, { chosenOptions: ["No"] })).rejects.toMatchObject({
    code: "refused",
    status: 409,
    message: "Too late",
  })
})
