import { NOTHING_KNOWN, type RunView } from "airflow-stream-client"
import { expect, test } from "vitest"
import { type Answer, ask, type Conversation, changed, historyOf, kept, textOf } from "../src/chat/conversation.js"
import { progressOf } from "../src/progress.js"

let made = 0
const turn = (message: string, answer: Answer) => ({ ...ask(message, () => `id-${made++}`), answer })
const turns: Conversation = [
  turn("one", { kind: "complete", text: "1" }),
  turn("two", { kind: "failed", text: "", reason: "It failed." }),
  turn("three", { kind: "coming", text: "" }),
]

function view(change: Partial<RunView>): RunView {
  return { ...NOTHING_KNOWN, resultTasks: ["answer"], ...change }
}

function output(text: string) {
  return { tryNumber: 1, blocks: [[text]], text, progress: null, withheld: false }
}

test("the history has what was answered before, and no more", () => {
  expect(historyOf(turns, turns[2]?.id ?? "")).toEqual([
    { role: "user", content: "one" },
    { role: "assistant", content: "1" },
  ])
  expect(historyOf(turns, turns[0]?.id ?? "")).toEqual([])
})

test("a change leaves the other turns as they are", () => {
  const after = changed(turns, turns[2]?.id ?? "", { runId: "r1" })
  expect(after.map((one) => one.runId)).toEqual([null, null, "r1"])
  expect(after[0]).toBe(turns[0])
})

test("only the youngest turns are kept", () => {
  const many = Array.from({ length: 60 }, (_, number) => turn(`${number}`, { kind: "coming", text: "" }))
  expect(kept(many).length).toBe(40)
  expect(kept(many).at(-1)).toBe(many.at(-1))
})

test("what the task that answers says counts more than what others say", () => {
  const said = { search: output("found"), answer: output("Because") }
  expect(textOf(view({ output: said }))).toBe("Because")
  expect(textOf(view({ output: { search: output("found") } }))).toBe("found")
  expect(textOf(view({ output: { "answer[0]": output("a"), "answer[1]": output("b") } }))).toBe("a\nb")
})

test.each([
  ["a text", "a text"],
  [{ answer: "because", question: "why" }, "because"],
  [{ content: "because" }, "because"],
  [[1, 2], "[\n  1,\n  2\n]"],
  [null, "null"],
])("the result takes the place of what was said: %j", (value, text) => {
  const outcome = { kind: "result" as const, value, results: { answer: value }, references: {}, withheld: false }
  expect(textOf(view({ output: { answer: output("Bec") }, outcome }))).toBe(text)
})

test("only tasks that go on tell how far they have come", () => {
  const task = { map_index: -1, try_number: 1, start_date: "2026-11-22T10:00:00Z" }
  const at = (text: string) => ({ ...output(""), progress: { fraction: 0.5, text } })
  const told = view({
    tasks: {
      search: { ...task, task_id: "search", state: "success", end_date: "2026-11-22T10:00:01Z" },
      answer: { ...task, task_id: "answer", state: "running", end_date: null },
    },
    output: { search: at("searching"), answer: at("writing"), other: output("silent") },
  })
  expect(progressOf(told)).toEqual([["answer", { fraction: 0.5, text: "writing" }]])
})
