// The state of a stream's connection, as a total transition table. Pure.
//
//   state        received   silent   disconnected   ended   failed   closed
//   connecting   live       -        -              ended   failed   closed
//   live         -          stale    resuming       ended   failed   closed
//   stale        live       -        resuming       ended   failed   closed
//   resuming     live       -        -              ended   failed   closed
//   ended        -          -        -              -       -        -
//   failed       -          -        -              -       -        -
//   closed       -          -        -              -       -        -
//
// "-": the state does not change. The last three are final.
// A stream that was never live stays `connecting` when a connection is lost: there is nothing to resume.

import type { StreamState } from "../types.js"

/**
 * - `received`: a frame about the run or with a cursor arrived, or any frame after a silence
 * - `silent`: no frame arrived for longer than the server's ping interval allows
 * - `disconnected`: the connection ended, the stream did not
 * - `ended`: the stream is complete
 * - `failed`: another attempt would fail, too
 * - `closed`: closed by the caller
 */
export type StreamEvent = "received" | "silent" | "disconnected" | "ended" | "failed" | "closed"

const FINISH = { ended: "ended", failed: "failed", closed: "closed" } as const

const stay = <State extends StreamState>(state: State): Record<StreamEvent, State> => ({
  received: state,
  silent: state,
  disconnected: state,
  ended: state,
  failed: state,
  closed: state,
})

export const NEXT_STATE: Readonly<Record<StreamState, Readonly<Record<StreamEvent, StreamState>>>> = {
  connecting: { received: "live", silent: "connecting", disconnected: "connecting", ...FINISH },
  live: { received: "live", silent: "stale", disconnected: "resuming", ...FINISH },
  stale: { received: "live", silent: "stale", disconnected: "resuming", ...FINISH },
  resuming: { received: "live", silent: "resuming", disconnected: "resuming", ...FINISH },
  ended: stay("ended"),
  failed: stay("failed"),
  closed: stay("closed"),
}

/** Whether a state is final. */
export function isFinal(state: StreamState): boolean {
  return state === "ended" || state === "failed" || state === "closed"
}
