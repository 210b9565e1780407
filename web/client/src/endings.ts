// Why a connection ended, and what follows from that. Pure.

import { CLOSE_CODES } from "./connection.js"
import { StreamError } from "./errors.js"

/** How a connection ended. */
export type Ending =
  /** It broke, or nobody answered: nothing is known of the stream. */
  | { readonly kind: "cut"; readonly why: string }
  /** Nothing comes any more: a 204, or a WebSocket's 1000 for who has seen the end. */
  | { readonly kind: "over" }
  | { readonly kind: "refused"; readonly status: number; readonly detail: string; readonly retryAfterMs: number | null }
  /** A `close` frame, or the close code of a WebSocket. */
  | {
      readonly kind: "closed"
      readonly code: number
      readonly reason: string
      readonly reconnect: boolean
      readonly retryMs: number | null
    }
  /** What answered is no stream. */
  | { readonly kind: "strange"; readonly status: number; readonly why: string }

/** What to do after an ending. */
export type Step =
  | { readonly kind: "stop" }
  | { readonly kind: "fail"; readonly error: StreamError }
  | {
      readonly kind: "again"
      /** Not earlier than after so many milliseconds; `null`: the client chooses. */
      readonly floorMs: number | null
      /** Whether the credential must be a new one. */
      readonly refresh: boolean
      readonly error: StreamError
    }

/** Codes from here on are final (`docs/protocol.md`, close codes). */
const FIRST_FINAL_CODE = 4500

const MAY_PASS = new Set([408, 425, 429, 500, 502, 503, 504])

/** Codes of a `close` after which the same token is of no use. */
const TOKEN_IS_OLD: ReadonlySet<number> = new Set([CLOSE_CODES.AUTH_EXPIRING, CLOSE_CODES.UNAUTHENTICATED])

/**
 * Says what follows.
 *
 * @param ending how the connection ended
 * @param renewable whether another credential can be had, and has not just been tried
 */
export function judge(ending: Ending, renewable: boolean): Step {
  switch (ending.kind) {
    case "over":
      return { kind: "stop" }
    case "cut":
      return { kind: "again", floorMs: null, refresh: false, error: new StreamError("lost", ending.why) }
    case "strange":
      return { kind: "fail", error: new StreamError("not_a_stream", ending.why, ending.status) }
    case "refused":
      return refused(ending.status, ending.detail, ending.retryAfterMs, renewable)
    case "closed":
      return closed(ending, renewable)
  }
}

function refused(status: number, detail: string, retryAfterMs: number | null, renewable: boolean): Step {
  if (status === 401) return unauthenticated(detail, status, renewable)
  const error = new StreamError("refused", detail, status)
  return MAY_PASS.has(status)
    ? { kind: "again", floorMs: retryAfterMs, refresh: false, error }
    : { kind: "fail", error }
}

function closed(ending: Ending & { kind: "closed" }, renewable: boolean): Step {
  const { code, reason, reconnect, retryMs } = ending
  if (!reconnect && TOKEN_IS_OLD.has(code)) return unauthenticated(reason, code, renewable)
  const error = new StreamError("closed_by_server", reason, code)
  if (!reconnect) return { kind: "fail", error }
  return { kind: "again", floorMs: retryMs, refresh: TOKEN_IS_OLD.has(code), error }
}

function unauthenticated(detail: string, status: number, renewable: boolean): Step {
  const error = new StreamError("unauthenticated", detail, status)
  return renewable ? { kind: "again", floorMs: 0, refresh: true, error } : { kind: "fail", error }
}

/** Returns the ending that a WebSocket's close code means (RFC 6455 section 7.4). */
export function endingOfCode(code: number, reason: string): Ending {
  if (code < 4000) return { kind: "cut", why: reason || `The connection was closed (code ${code})` }
  // Who has a stream is not idle; there was none when the server decided.
  if (code === CLOSE_CODES.IDLE) return { kind: "cut", why: reason }
  return {
    kind: "closed",
    code,
    reason: reason || `Closed with code ${code}`,
    reconnect: code < FIRST_FINAL_CODE,
    retryMs: null,
  }
}
