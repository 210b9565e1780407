// A WebSocket (RFC 6455): frames are text messages, the cursor is their last member.

import { type Ending, endingOfCode } from "./endings.js"
import { addressOf, bearer, type Server } from "./http.js"
import type { Open } from "./link.js"
import type { Frame } from "./output_frames.js"

const NORMAL_CLOSURE = 1000

/** A handshake that takes longer goes through no proxy. */
export const HANDSHAKE_MS = 10_000

/** What a WebSocket does for its user. */
export interface SocketHandlers {
  onOpen(socket: WebSocket): void
  onFrame(frame: Frame): void
}

/**
 * Opens a WebSocket, signs in, and says how it ended.
 *
 * @param signal closes it
 */
export async function openSocket(
  server: Server,
  path: string,
  query: URLSearchParams,
  refresh: boolean,
  signal: AbortSignal,
  handlers: SocketHandlers,
): Promise<Ending> {
  const { WebSocket, clock } = server.platform
  if (WebSocket === undefined) return { kind: "cut", why: "There are no WebSockets here" }
  const address = new URL(await addressOf(server, path, query), globalThis.location?.href)
  address.protocol = address.protocol.replace("http", "ws")
  const token = await bearer(server.auth, refresh)
  if (signal.aborted) return { kind: "cut", why: "Left" }
  const socket = new WebSocket(address)
  return new Promise((resolve) => {
    let heard = false
    const over = (ending: Ending) => {
      cancelTimeout()
      signal.removeEventListener("abort", leave)
      resolve(ending)
    }
    const leave = () => {
      socket.close()
      // A connection that is dead may take minutes to close.
      over({ kind: "cut", why: "Left" })
    }
    const cancelTimeout = clock.after(HANDSHAKE_MS, () => {
      if (socket.readyState === WebSocket.CONNECTING) leave()
    })
    signal.addEventListener("abort", leave)
    socket.onopen = () => {
      if (token !== null) signIn(socket, token)
      handlers.onOpen(socket)
    }
    socket.onmessage = ({ data }) => {
      heard = true
      try {
        handlers.onFrame(JSON.parse(String(data)) as Frame)
      } catch (error) {
        socket.close()
        over({ kind: "cut", why: `Not understood: ${error}` })
      }
    }
    // What was wrong is not told here; what follows is.
    socket.onerror = () => {}
    socket.onclose = ({ code, reason }) => {
      // Who comes back after the end is told nothing but this.
      over(code === NORMAL_CLOSURE && !heard && query.has("cursor") ? { kind: "over" } : endingOfCode(code, reason))
    }
  })
}

/** Says who is there; later again, to stay. */
export function signIn(socket: WebSocket, token: string): void {
  socket.send(JSON.stringify({ op: "auth", token }))
}

/** Returns how to open the stream of a path. */
export function overWebSocket(server: Server, path: string, query: URLSearchParams): Open {
  return ({ cursor, refresh, signal }, hear) => {
    const asked = new URLSearchParams(query)
    if (cursor !== null) asked.set("cursor", cursor)
    return openSocket(server, path, asked, refresh, signal, {
      onOpen: () => {},
      onFrame: (frame) => hear([frame]),
    })
  }
}

/**
 * Falls back where the first way does not get through: a proxy that knows no WebSockets, or swallows what they say; or a
 * handshake that was refused, of which browsers don't tell why.
 */
export function withFallback(first: Open, second: Open): Open {
  let avoided = false
  return async (attempt, hear) => {
    if (!avoided) {
      let heard = false
      const ending = await first(attempt, (frames) => {
        heard = true
        hear(frames)
      })
      if (heard || ending.kind !== "cut") return ending
      avoided = true
      if (attempt.signal.aborted) return ending
    }
    return second(attempt, (frames) => {
      avoided = false
      hear(frames)
    })
  }
}
