import { afterEach, beforeEach, expect, test, vi } from "vitest"
import { ask, type Conversation, changed } from "../src/chat/conversation.js"
import { Keeper, load, REST } from "../src/chat/store.js"

const WORD = "word "
const COUNT = 2000

let written: string[] = []

beforeEach(() => {
  vi.useFakeTimers()
  const items = new Map<string, string>()
  written = []
  vi.stubGlobal("sessionStorage", {
    getItem: (key: string) => items.get(key) ?? null,
    setItem: (key: string, text: string) => {
      written.push(text)
      items.set(key, text)
    },
  })
})

afterEach(() => {
  vi.useRealTimers()
  vi.unstubAllGlobals()
})

let made = 0
const asked = (): Conversation => [ask("What is a pool?", () => `id-${made++}`)]

function withWords(turns: Conversation, count: number): Conversation {
  return changed(turns, turns.at(-1)?.id ?? "", { answer: { kind: "coming", text: WORD.repeat(count) } })
}

test("an answer of 2,000 words in 20 seconds is written twenty times", () => {
  const keeper = new Keeper("chat", [])
  const turns = asked()
  keeper.keep(turns)
  for (let count = 1; count <= COUNT; count++) {
    keeper.keep(withWords(turns, count))
    vi.advanceTimersByTime(10)
  }
  expect(written.length).toBe(1 + (COUNT * 10) / REST)
  vi.advanceTimersByTime(REST)
  expect(load("chat")).toEqual(withWords(turns, COUNT))
  const after = written.length
  vi.advanceTimersByTime(10 * REST)
  expect(written.length).toBe(after)
})

test("a question, its run and its end are written at once", () => {
  const keeper = new Keeper("chat", [])
  const turns = asked()
  const id = turns[0]?.id ?? ""
  for (const change of [{}, { runId: "r1" }, { answer: { kind: "complete", text: "It limits." } }] as const) {
    const next = changed(turns, id, change)
    keeper.keep(next)
    expect(load("chat")).toEqual(next)
  }
  keeper.keep([])
  expect(load("chat")).toEqual([])
  expect(written.length).toBe(4)
})

test("what is due is written when the page goes, and only then", () => {
  const turns = asked()
  const keeper = new Keeper("chat", turns)
  keeper.write()
  expect(written).toEqual([])
  keeper.keep(withWords(turns, 3))
  expect(written).toEqual([])
  keeper.write()
  expect(load("chat")).toEqual(withWords(turns, 3))
  vi.advanceTimersByTime(REST)
  expect(written.length).toBe(1)
})

test("a full storage is borne", () => {
  vi.stubGlobal("sessionStorage", {
    setItem: () => {
      throw new DOMException("full", "QuotaExceededError")
    },
  })
  new Keeper("chat", []).keep(asked())
  expect(load("chat")).toEqual([])
})
