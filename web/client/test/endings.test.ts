import { expect, test } from "vitest"
import { retryAfterMs, wait } from "../src/backoff.js"
import { endingOfCode, judge } from "../src/endings.js"
import { CLOSE_CODES } from "../src/index.js"

const refused = (status: number, retryAfter: number | null = null) => {
  return { kind: "refused", status, detail: "No", retryAfterMs: retryAfter } as const
}

test.each([400, 402, 403, 404, 405, 406, 409, 410, 413, 414, 418, 422, 431, 451, 501, 505, 511])(
  "status %i is final",
  (status) => {
    expect(judge(refused(status), true)).toMatchObject({ kind: "fail", error: { code: "refused", status } })
  },
)

test.each([408, 425, 429, 500, 502, 503, 504])("status %i may pass", (status) => {
  expect(judge(refused(status, 7000), true)).toMatchObject({ kind: "again", floorMs: 7000, refresh: false })
})

test("401 asks for another credential, where one can be had", () => {
  expect(judge(refused(401), true)).toMatchObject({ kind: "again", refresh: true })
  expect(judge(refused(401), false)).toMatchObject({ kind: "fail", error: { code: "unauthenticated" } })
})

test.each(Object.entries(CLOSE_CODES))("close code %s says whether to come back", (name, code) => {
  const step = judge(endingOfCode(code, ""), false)
  // Nothing was subscribed to when the server said so; whoever has a stream comes back.
  expect(step.kind).toBe(code < 4500 || name === "IDLE" ? "again" : "fail")
})

test("a token that is old is replaced, where another can be had", () => {
  expect(judge(endingOfCode(CLOSE_CODES.AUTH_EXPIRING, ""), true)).toMatchObject({ kind: "again", refresh: true })
  expect(judge(endingOfCode(CLOSE_CODES.UNAUTHENTICATED, ""), true)).toMatchObject({ kind: "again", refresh: true })
  expect(judge(endingOfCode(CLOSE_CODES.UNAUTHENTICATED, ""), false)).toMatchObject({
    kind: "fail",
    error: { code: "unauthenticated", status: 4501 },
  })
})

test("codes that are not ours are connections that broke", () => {
  for (const code of [1000, 1001, 1006, 1009, 1011, 1012, 3000]) {
    expect(judge(endingOfCode(code, ""), false)).toMatchObject({ kind: "again", refresh: false })
  }
  expect(judge(endingOfCode(4777, "of a later version"), false).kind).toBe("fail")
  expect(judge(endingOfCode(4077, "of a later version"), false).kind).toBe("again")
})

test("the frame counts, not the number of its code", () => {
  const close = { kind: "closed", code: 4001, reason: "", reconnect: false, retryMs: null } as const
  expect(judge(close, false).kind).toBe("fail")
})

test("waits are random, grow with failures, and have an end", () => {
  expect(wait(0, null, 0)).toBe(0)
  expect([0, 1, 2, 3, 4].map((failures) => wait(failures, null, 1))).toEqual([500, 500, 1000, 2000, 4000])
  expect(wait(60, null, 1)).toBe(30_000)
  expect(wait(3, null, 0.5)).toBe(1000)
})

test("the server's floor is kept, and not believed where it is absurd", () => {
  expect(wait(1, 7000, 0)).toBe(7000)
  expect(wait(1, 7000, 1)).toBe(7500)
  expect(wait(0, -5, 0)).toBe(0)
  expect(wait(0, Number.NaN, 0)).toBe(0)
  expect(wait(0, 1e15, 0)).toBe(3_600_000)
})

test("Retry-After is read as seconds or as a date", () => {
  const now = Date.parse("2026-11-22T14:00:00Z")
  expect(retryAfterMs("7", now)).toBe(7000)
  expect(retryAfterMs("Sun, 22 Nov 2026 14:00:09 GMT", now)).toBe(9000)
  expect(retryAfterMs("Sun, 22 Nov 2026 13:00:00 GMT", now)).toBe(0)
  expect(retryAfterMs("soon", now)).toBeNull()
  expect(retryAfterMs(null, now)).toBeNull()
})
