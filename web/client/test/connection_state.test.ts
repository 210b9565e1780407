import { expect, test } from "vitest"
import type { StreamState } from "../src/index.js"
import { isFinal, NEXT_STATE, type StreamEvent } from "../src/stream/connection_state.js"

const STATES: StreamState[] = ["connecting", "live", "stale", "resuming", "ended", "failed", "closed"]
const EVENTS: StreamEvent[] = ["received", "silent", "disconnected", "ended", "failed", "closed"]

test("the table is total: it has an entry for each state and event", () => {
  expect(Object.keys(NEXT_STATE).sort()).toEqual([...STATES].sort())
  for (const state of STATES) {
    expect(Object.keys(NEXT_STATE[state]).sort()).toEqual([...EVENTS].sort())
    for (const event of EVENTS) expect(STATES).toContain(NEXT_STATE[state][event])
  }
})

test("final states never change", () => {
  for (const state of STATES.filter(isFinal)) for (const event of EVENTS) expect(NEXT_STATE[state][event]).toBe(state)
})

test("each state is reachable, and each state that is not final leads to all final ones", () => {
  const reachable = new Set<StreamState>(["connecting"])
  for (const state of reachable) for (const event of EVENTS) reachable.add(NEXT_STATE[state][event])
  expect([...reachable].sort()).toEqual([...STATES].sort())
  for (const state of STATES.filter((one) => !isFinal(one))) {
    const final = [NEXT_STATE[state].ended, NEXT_STATE[state].failed, NEXT_STATE[state].closed]
    expect(final).toEqual(["ended", "failed", "closed"])
  }
})

test("only a received frame makes a stream live, and no event makes it connecting again", () => {
  for (const state of STATES) {
    for (const event of EVENTS) {
      if (NEXT_STATE[state][event] === "live") expect(event === "received" && !isFinal(state)).toBe(true)
      if (NEXT_STATE[state][event] === "connecting") expect(state).toBe("connecting")
    }
  }
})
