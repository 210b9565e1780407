import { expect, test } from "vitest"
import { CLOSE_CODES } from "../src/index.js"
import { computeBackoff } from "../src/stream/backoff.js"
import { decideNextStep } from "../src/stream/reconnect_decision.js"
import { parseRetryAfter } from "../src/transport/http.js"
import { endOfCloseCode } from "../src/transport/websocket.js"

const refusal = (status: number, retryAfter: number | null = null) => {
  return { kind: "refused", status, detail: "No", retryAfterMs: retryAfter } as const
}

test.each([400, 402, 403, 404, 405, 406, 409, 410, 413, 414, 418, 422, 431, 451, 501, 505])(
  "status %i is final",
  (status) => {
    expect(decideNextStep(refusal(status), true)).toMatchObject({ kind: "fail", error: { code: "refused", status } })
  },
)

test.each([408, 425, 429, 500, 502, 503, 504, 507, 511, 520, 521, 522, 523, 524, 530])(
  "status %i is temporary",
  (status) => {
    const step = decideNextStep(refusal(status, 7000), true)
    expect(step).toMatchObject({ kind: "reconnect", minDelayMs: 7000, refresh: false })
  },
)

test("status 401 reconnects with a new credential, if there can be one", () => {
  expect(decideNextStep(refusal(401), true)).toMatchObject({ kind: "reconnect", refresh: true })
  expect(decideNextStep(refusal(401), false)).toMatchObject({ kind: "fail", error: { code: "unauthenticated" } })
})

test.each(Object.entries(CLOSE_CODES))("close code %s decides whether to reconnect", (name, code) => {
  const step = decideNextStep(endOfCloseCode(code, ""), false)
  // IDLE: the server has not received the subscription of this stream yet.
  expect(step.kind).toBe(code < 4500 || name === "IDLE" ? "reconnect" : "fail")
})

test("an expired token is replaced, if there can be a new one", () => {
  const decide = (code: number, canRenew: boolean) => decideNextStep(endOfCloseCode(code, ""), canRenew)
  expect(decide(CLOSE_CODES.AUTH_EXPIRING, true)).toMatchObject({ kind: "reconnect", refresh: true })
  expect(decide(CLOSE_CODES.UNAUTHENTICATED, true)).toMatchObject({ kind: "reconnect", refresh: true })
  expect(decide(CLOSE_CODES.UNAUTHENTICATED, false)).toMatchObject({
    kind: "fail",
    error: { code: "unauthenticated", status: 4501 },
  })
})

test("close codes that are not the server's mean a lost connection", () => {
  for (const code of [1000, 1001, 1006, 1009, 1011, 1012, 3000]) {
    expect(decideNextStep(endOfCloseCode(code, ""), false)).toMatchObject({ kind: "reconnect", refresh: false })
  }
  expect(decideNextStep(endOfCloseCode(4777, "of a later version"), false).kind).toBe("fail")
  expect(decideNextStep(endOfCloseCode(4077, "of a later version"), false).kind).toBe("reconnect")
})

test("`reconnect` of a close frame counts, not the number of its code", () => {
  const close = { kind: "closed", code: 4001, reason: "", reconnect: false, retryMs: null } as const
  expect(decideNextStep(close, false).kind).toBe("fail")
})

test("the backoff is random, grows with failures, and has a maximum", () => {
  expect(computeBackoff(0, null, 0)).toBe(0)
  expect([0, 1, 2, 3, 4].map((failures) => computeBackoff(failures, null, 1))).toEqual([500, 500, 1000, 2000, 4000])
  expect(computeBackoff(60, null, 1)).toBe(30_000)
  expect(computeBackoff(3, null, 0.5)).toBe(1000)
})

test("the backoff is at least the server's minimum, unless that is absurd", () => {
  expect(computeBackoff(1, 7000, 0)).toBe(7000)
  expect(computeBackoff(1, 7000, 1)).toBe(7500)
  expect(computeBackoff(0, -5, 0)).toBe(0)
  expect(computeBackoff(0, Number.NaN, 0)).toBe(0)
  expect(computeBackoff(0, 1e15, 0)).toBe(3_600_000)
})

test("Retry-After is parsed as seconds or as a date", () => {
  const now = Date.parse("2026-11-22T14:00:00Z")
  expect(parseRetryAfter("7", now)).toBe(7000)
  expect(parseRetryAfter("Sun, 22 Nov 2026 14:00:09 GMT", now)).toBe(9000)
  expect(parseRetryAfter("Sun, 22 Nov 2026 13:00:00 GMT", now)).toBe(0)
  expect(parseRetryAfter("soon", now)).toBeNull()
  expect(parseRetryAfter(null, now)).toBeNull()
})
