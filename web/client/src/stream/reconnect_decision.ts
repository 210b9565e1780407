// Decides what follows when a connection has ended. Pure.
//
//   end            condition                                   next step
//   complete                                                   stop
//   lost                                                       reconnect
//   not_a_stream                                               fail
//   refused        401, credential can be renewed              reconnect with a new credential
//   refused        408, 425, 429, 5xx but 501 and 505          reconnect, not before Retry-After
//   refused        other status                                fail
//   closed         final, token expired, can be renewed        reconnect with a new credential
//   closed         final                                       fail
//   closed         not final                                   reconnect, not before retry_ms

import { StreamError } from "../errors.js"
import { CLOSE_CODES } from "../protocol/connection_frames.js"
import type { ConnectionEnd } from "../transport/transport.js"

export type NextStep =
  | { readonly kind: "stop" }
  | { readonly kind: "fail"; readonly error: StreamError }
  | {
      readonly kind: "reconnect"
      /** Minimum delay that the server requires, if any. */
      readonly minDelayMs: number | null
      /** Whether a new credential is needed. */
      readonly refresh: boolean
      readonly error: StreamError
    }

/** Exceptions to the rule that errors of the client are final and errors of servers are not. CDNs have more of the latter. */
const EXCEPTIONS = [408, 425, 429, 501, 505]

/** Close codes after which the same token would be refused. */
const TOKEN_EXPIRED: ReadonlySet<number> = new Set([CLOSE_CODES.AUTH_EXPIRING, CLOSE_CODES.UNAUTHENTICATED])

/** @param canRenew whether a new credential can be obtained, and the last attempt did not already use a new one */
export function decideNextStep(end: ConnectionEnd, canRenew: boolean): NextStep {
  switch (end.kind) {
    case "complete":
      return { kind: "stop" }
    case "lost":
      return { kind: "reconnect", minDelayMs: null, refresh: false, error: new StreamError("lost", end.reason) }
    case "not_a_stream":
      return { kind: "fail", error: new StreamError("not_a_stream", end.reason, end.status) }
    case "refused":
      return afterRefusal(end.status, end.detail, end.retryAfterMs, canRenew)
    case "closed":
      return afterClose(end, canRenew)
  }
}

function afterRefusal(status: number, detail: string, retryAfterMs: number | null, canRenew: boolean): NextStep {
  if (status === 401) return afterAuthFailure(detail, status, canRenew)
  const error = new StreamError("refused", detail, status)
  return EXCEPTIONS.includes(status) !== status >= 500
    ? { kind: "reconnect", minDelayMs: retryAfterMs, refresh: false, error }
    : { kind: "fail", error }
}

function afterClose(end: ConnectionEnd & { kind: "closed" }, canRenew: boolean): NextStep {
  // `reconnect` decides, not the number of the code: later versions may add codes.
  const { code, reason, reconnect, retryMs } = end
  if (!reconnect && TOKEN_EXPIRED.has(code)) return afterAuthFailure(reason, code, canRenew)
  const error = new StreamError("closed_by_server", reason, code)
  if (!reconnect) return { kind: "fail", error }
  return { kind: "reconnect", minDelayMs: retryMs, refresh: TOKEN_EXPIRED.has(code), error }
}

function afterAuthFailure(detail: string, status: number, canRenew: boolean): NextStep {
  const error = new StreamError("unauthenticated", detail, status)
  return canRenew ? { kind: "reconnect", minDelayMs: 0, refresh: true, error } : { kind: "fail", error }
}
