import { EMPTY_VIEW, type RunView } from "airflow-stream-client"
import { expect, test } from "vitest"
import {
  type Answer,
  buildHistory,
  type Conversation,
  createTurn,
  dropOldTurns,
  getAnswerText,
  toAnswer,
  updateTurn,
} from "../src/chat/conversation.js"
import { toAgentSteps } from "../src/components/agentSteps.js"
import { getRunningProgress } from "../src/run/taskProgress.js"

let lastId = 0
const answeredTurn = (message: string, answer: Answer) => ({ ...createTurn(message, () => `id-${lastId++}`), answer })
const turns: Conversation = [
  answeredTurn("one", { kind: "complete", text: "1" }),
  answeredTurn("two", { kind: "failed", text: "", reason: "It failed." }),
  answeredTurn("three", { kind: "coming", text: "" }),
]

function view(change: Partial<RunView>): RunView {
  return { ...EMPTY_VIEW, resultTasks: ["answer"], ...change }
}

function output(text: string) {
  return { tryNumber: 1, blocks: [[text]], text, progress: null, withheld: false }
}

test("the history contains the earlier turns with an answer", () => {
  expect(buildHistory(turns, turns[2]?.id ?? "")).toEqual([
    { role: "user", content: "one" },
    { role: "assistant", content: "1" },
  ])
  expect(buildHistory(turns, turns[0]?.id ?? "")).toEqual([])
})

test("a run without a result is no failure", () => {
  const skipped = view({ outcome: { kind: "none", reason: "task_skipped", taskId: "answer" } })
  expect(toAnswer({ state: "ended", view: skipped, error: null })).toEqual({
    kind: "none",
    text: "",
    reason: "Ended without a result: task “answer” was skipped.",
  })
})

test("updating a turn does not change the others", () => {
  const after = updateTurn(turns, turns[2]?.id ?? "", { runId: "r1" })
  expect(after.map((one) => one.runId)).toEqual([null, null, "r1"])
  expect(after[0]).toBe(turns[0])
})

test("old turns are dropped", () => {
  const many = Array.from({ length: 60 }, (_, number) => answeredTurn(`${number}`, { kind: "coming", text: "" }))
  expect(dropOldTurns(many).length).toBe(40)
  expect(dropOldTurns(many).at(-1)).toBe(many.at(-1))
})

test("the output of result tasks takes precedence", () => {
  const outputs = { search: output("found"), answer: output("Because") }
  expect(getAnswerText(view({ output: outputs }))).toBe("Because")
  expect(getAnswerText(view({ output: { search: output("found") } }))).toBe("found")
  expect(getAnswerText(view({ output: { "answer[0]": output("a"), "answer[1]": output("b") } }))).toBe("a\nb")
})

test.each([
  ["a text", "a text"],
  [{ answer: "because", question: "why" }, "because"],
  [{ content: "because" }, "because"],
  [[1, 2], "[\n  1,\n  2\n]"],
  [null, "null"],
])("the result replaces the output: %j", (value, text) => {
  const outcome = {
    kind: "result" as const,
    value,
    results: { answer: value },
    references: {},
    mapIndexes: {},
    withheld: false,
  }
  expect(getAnswerText(view({ output: { answer: output("Bec") }, outcome }))).toBe(text)
})

test("progress is shown for running tasks only", () => {
  const task = { map_index: -1, try_number: 1, start_date: "2026-11-22T10:00:00Z" }
  const at = (text: string) => ({ ...output(""), progress: { fraction: 0.5, text } })
  const runView = view({
    tasks: {
      search: { ...task, task_id: "search", state: "success", end_date: "2026-11-22T10:00:01Z" },
      answer: { ...task, task_id: "answer", state: "running", end_date: null },
    },
    output: { search: at("searching"), answer: at("writing"), other: output("no progress") },
  })
  expect(getRunningProgress(runView)).toEqual([["answer", { fraction: 0.5, text: "writing" }]])
})

test("the steps of an agent are short texts", () => {
  const agent = [
    { kind: "thinking", text: "Hm.", textOffset: 0 },
    { kind: "tool", id: "c1", name: "look", arguments: {}, state: "running", result: null, error: null, textOffset: 0 },
    {
      kind: "tool",
      id: "c2",
      name: null,
      arguments: null,
      state: "done",
      result: "x".repeat(9_000),
      error: null,
      textOffset: 0,
    },
    { kind: "tool", id: "c3", name: "get", arguments: "{", state: "failed", result: null, error: "No.", textOffset: 0 },
  ] as const
  const steps = toAgentSteps(view({ output: { answer: { ...output(""), agent }, other: output("text") } }))
  expect(steps.map(({ task, title, state, input, text }) => [task, title, state, input, text.slice(0, 10)])).toEqual([
    ["answer", "Thinking", "done", null, "Hm."],
    ["answer", "look", "running", "{}", ""],
    ["answer", "A tool", "done", "null", "xxxxxxxxxx"],
    ["answer", "get", "failed", "{", "No."],
  ])
  expect(steps[2]?.text.length).toBe(4_001)
})
