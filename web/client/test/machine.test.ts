import { expect, test } from "vitest"
import type { StreamState } from "../src/index.js"
import { isOver, NEXT, type StreamEvent } from "../src/machine.js"

const STATES: StreamState[] = ["connecting", "live", "stale", "resuming", "ended", "failed", "closed"]
const EVENTS: StreamEvent[] = ["heard", "silent", "cut", "over", "refused", "left"]

test("the table is total: every state knows what follows from every event", () => {
  expect(Object.keys(NEXT).sort()).toEqual([...STATES].sort())
  for (const state of STATES) {
    expect(Object.keys(NEXT[state]).sort()).toEqual([...EVENTS].sort())
    for (const event of EVENTS) expect(STATES).toContain(NEXT[state][event])
  }
})

test("what is over stays over", () => {
  for (const state of STATES.filter(isOver)) for (const event of EVENTS) expect(NEXT[state][event]).toBe(state)
})

test("every state can be reached, and every state that is not over can come to each end", () => {
  const reached = new Set<StreamState>(["connecting"])
  for (const state of reached) for (const event of EVENTS) reached.add(NEXT[state][event])
  expect([...reached].sort()).toEqual([...STATES].sort())
  for (const state of STATES.filter((one) => !isOver(one))) {
    expect([NEXT[state].over, NEXT[state].refused, NEXT[state].left]).toEqual(["ended", "failed", "closed"])
  }
})

test("only what is heard makes a stream live, and nothing makes it connecting again", () => {
  for (const state of STATES) {
    for (const event of EVENTS) {
      if (NEXT[state][event] === "live") expect(event === "heard" && !isOver(state)).toBe(true)
      if (NEXT[state][event] === "connecting") expect(state).toBe("connecting")
    }
  }
})
