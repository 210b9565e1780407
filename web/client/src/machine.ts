// How a stream is doing: a total table of what follows from what. Pure.
//
//   connecting ──heard──▶ live ──silent──▶ stale
//                          ▲ ▲──heard───────┘ │
//                    heard │ └────cut─────┐   │ cut
//                       resuming ◀────────┴───┘
//
//   any of these: over ▶ ended, refused ▶ failed, left ▶ closed; and there it stays

import type { StreamState } from "./types.js"

/**
 * What can happen to a stream.
 *
 * - `heard`: a frame came, be it a ping
 * - `silent`: none has come for longer than the server's pings would allow
 * - `cut`: the connection has ended, and the stream has not
 * - `over`: the stream has ended
 * - `refused`: it makes no sense to come back
 * - `left`: its user has closed it
 */
export type StreamEvent = "heard" | "silent" | "cut" | "over" | "refused" | "left"

const OVER = { over: "ended", refused: "failed", left: "closed" } as const

const stays = <State extends StreamState>(state: State): Record<StreamEvent, State> => ({
  heard: state,
  silent: state,
  cut: state,
  over: state,
  refused: state,
  left: state,
})

export const NEXT: Readonly<Record<StreamState, Readonly<Record<StreamEvent, StreamState>>>> = {
  connecting: { heard: "live", silent: "connecting", cut: "connecting", ...OVER },
  live: { heard: "live", silent: "stale", cut: "resuming", ...OVER },
  stale: { heard: "live", silent: "stale", cut: "resuming", ...OVER },
  resuming: { heard: "live", silent: "resuming", cut: "resuming", ...OVER },
  ended: stays("ended"),
  failed: stays("failed"),
  closed: stays("closed"),
}

/** Whether a stream is past all change. */
export function isOver(state: StreamState): boolean {
  return state === "ended" || state === "failed" || state === "closed"
}
