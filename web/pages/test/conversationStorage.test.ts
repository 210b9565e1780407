import { afterEach, beforeEach, expect, test, vi } from "vitest"
import { type Conversation, createTurn, updateTurn } from "../src/chat/conversation.js"
import { ConversationSaver, loadConversation, SAVE_INTERVAL_MS } from "../src/chat/conversationStorage.js"

const WORD = "word "
const COUNT = 2000

let writes: string[] = []

beforeEach(() => {
  vi.useFakeTimers()
  const items = new Map<string, string>()
  writes = []
  vi.stubGlobal("sessionStorage", {
    getItem: (key: string) => items.get(key) ?? null,
    setItem: (key: string, text: string) => {
      writes.push(text)
      items.set(key, text)
    },
  })
})

afterEach(() => {
  vi.useRealTimers()
  vi.unstubAllGlobals()
})

let lastId = 0
const createConversation = (): Conversation => [createTurn("What is a pool?", () => `id-${lastId++}`)]

function withWords(turns: Conversation, count: number): Conversation {
  return updateTurn(turns, turns.at(-1)?.id ?? "", { answer: { kind: "coming", text: WORD.repeat(count) } })
}

test("an answer of 2,000 words in 20 seconds is saved twenty times", () => {
  const saver = new ConversationSaver("chat", [])
  const turns = createConversation()
  saver.update(turns)
  for (let count = 1; count <= COUNT; count++) {
    saver.update(withWords(turns, count))
    vi.advanceTimersByTime(10)
  }
  expect(writes.length).toBe(1 + (COUNT * 10) / SAVE_INTERVAL_MS)
  vi.advanceTimersByTime(SAVE_INTERVAL_MS)
  expect(loadConversation("chat")).toEqual(withWords(turns, COUNT))
  const after = writes.length
  vi.advanceTimersByTime(10 * SAVE_INTERVAL_MS)
  expect(writes.length).toBe(after)
})

test("a question, its run and its end are saved at once", () => {
  const saver = new ConversationSaver("chat", [])
  const turns = createConversation()
  const id = turns[0]?.id ?? ""
  for (const change of [{}, { runId: "r1" }, { answer: { kind: "complete", text: "It limits." } }] as const) {
    const next = updateTurn(turns, id, change)
    saver.update(next)
    expect(loadConversation("chat")).toEqual(next)
  }
  saver.update([])
  expect(loadConversation("chat")).toEqual([])
  expect(writes.length).toBe(4)
})

test("pending text is saved when the page is closed, and not again later", () => {
  const turns = createConversation()
  const saver = new ConversationSaver("chat", turns)
  saver.save()
  expect(writes).toEqual([])
  saver.update(withWords(turns, 3))
  expect(writes).toEqual([])
  saver.save()
  expect(loadConversation("chat")).toEqual(withWords(turns, 3))
  vi.advanceTimersByTime(SAVE_INTERVAL_MS)
  expect(writes.length).toBe(1)
})

test("a full storage is ignored", () => {
  vi.stubGlobal("sessionStorage", {
    setItem: () => {
      throw new DOMException("full", "QuotaExceededError")
    },
  })
  new ConversationSaver("chat", []).update(createConversation())
  expect(loadConversation("chat")).toEqual([])
})
