import { expect, test } from "vitest"
import { EMPTY_VIEW, type Frame, type RunView, reduce } from "../src/index.js"
import { chunk, progress, RUN, snapshot } from "./support/frames.js"

function output(type: "thinking" | "tool_call" | "tool_result", index: number, value: unknown, more: object = {}) {
  const at = "2026-11-22T14:21:11Z"
  return { type, ...RUN, seq: 1, at, task_id: "answer", map_index: -1, try_number: 1, index, value, ...more } as Frame
}

const viewOf = (...frames: Frame[]) => [snapshot(), ...frames].reduce<RunView>(reduce, EMPTY_VIEW)

const call = { id: "c1", name: "get_weather", arguments: { city: "Paris" } }
const tool = { kind: "tool", ...call, state: "running", result: null, error: null, textOffset: 0 }

test("the parts of an agent are in the order in which they came", () => {
  const { text, agent } = viewOf(
    output("thinking", 0, "They ask "),
    progress(1, 1, 0.5),
    output("thinking", 2, "for the weather."),
    output("tool_call", 3, call),
    output("thinking", 4, "Wait. "),
    chunk(1, 5, "It is "),
    output("thinking", 6, "warm?"),
    output("tool_result", 7, { id: "c1", result: { celsius: 21 } }),
    chunk(1, 8, "warm."),
  ).output.answer ?? { text: "", agent: [] }
  expect(text).toBe("It is warm.")
  expect(agent).toEqual([
    { kind: "thinking", text: "They ask for the weather.", textOffset: 0 },
    { ...tool, state: "done", result: { celsius: 21 } },
    { kind: "thinking", text: "Wait. ", textOffset: 0 },
    { kind: "thinking", text: "warm?", textOffset: 6 },
  ])
})

test("a call that fails, is repeated after an approval, or was not kept", () => {
  const frames = [output("tool_call", 0, call), output("tool_call", 1, call)]
  expect(viewOf(...frames).output.answer?.agent).toEqual([tool])
  const failed = viewOf(...frames, output("tool_result", 2, { id: "c1", error: "No such city" }))
  expect(failed.output.answer?.agent).toEqual([{ ...tool, state: "failed", error: "No such city" }])
  const unknown = viewOf(output("tool_result", 7, { id: "c2", result: 1 })).output.answer?.agent
  expect(unknown).toEqual([{ ...tool, id: "c2", name: null, arguments: null, state: "done", result: 1 }])
})

test("another try begins anew, and withheld parts are left out", () => {
  const first = viewOf(output("thinking", 0, "first"))
  const second = reduce(first, output("thinking", 0, "second", { try_number: 2 }))
  expect(second.output.answer?.agent).toEqual([{ kind: "thinking", text: "second", textOffset: 0 }])
  const withheld = viewOf(output("tool_call", 0, undefined, { withheld: true })).output.answer
  expect(withheld).toMatchObject({ withheld: true })
  expect(withheld?.agent).toBeUndefined()
})
