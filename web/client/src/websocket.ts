// A WebSocket (RFC 6455): frames are text messages, the cursor is their last member.

import type { Refusal } from "./connection.js"
import { type Ending, endingOfCode } from "./endings.js"
import type { Frame } from "./frames.js"
import { bearer, isRenewable, type Server, streamAddress } from "./http.js"
import type { Attempt, Open } from "./link.js"

const NORMAL_CLOSURE = 1000

/** A handshake that takes longer goes through no proxy. */
export const HANDSHAKE_MS = 10_000

/** What a WebSocket does for its user. */
export interface SocketHandlers {
  onOpen?(socket: WebSocket): void
  /** Returns how the connection ended, where the frame says so. */
  onFrame(frame: Frame): Ending | undefined
}

/** Opens a WebSocket, signs in, signs in again when that is due, and says how it ended. */
export async function openSocket(
  server: Server,
  path: string,
  query: URLSearchParams,
  { cursor, refresh, signal }: Attempt,
  handlers: SocketHandlers,
): Promise<Ending> {
  const { WebSocket, clock } = server.platform
  if (WebSocket === undefined) return { kind: "cut", why: "There are no WebSockets here" }
  const address = new URL(await streamAddress(server, path, query, cursor), globalThis.location?.href)
  address.protocol = address.protocol.replace("http", "ws")
  const token = await bearer(server.auth, refresh)
  if (signal.aborted) return { kind: "cut", why: "Left" }
  const socket = new WebSocket(address)
  return new Promise((resolve) => {
    let heard = false
    const over = (ending: Ending) => {
      cancelTimeout()
      socket.onmessage = null
      signal.removeEventListener("abort", hangUp)
      resolve(ending)
    }
    const leave = (ending: Ending) => {
      socket.close()
      // A connection that is dead may take minutes to close.
      over(ending)
    }
    const hangUp = () => leave({ kind: "cut", why: "Left" })
    const cancelTimeout = clock.after(HANDSHAKE_MS, () => {
      if (socket.readyState === WebSocket.CONNECTING) hangUp()
    })
    signal.addEventListener("abort", hangUp)
    socket.onopen = () => {
      if (token !== null) signIn(socket, token)
      handlers.onOpen?.(socket)
    }
    socket.onmessage = ({ data }) => {
      heard = true
      try {
        const frame = JSON.parse(String(data)) as Frame
        if (frame.type === "auth_expiring") void signInAnew(server, socket)
        const ending = handlers.onFrame(frame)
        if (ending !== undefined) leave(ending)
      } catch (error) {
        leave({ kind: "cut", why: `Not understood: ${error}` })
      }
    }
    // What was wrong is not told here; what follows is.
    socket.onerror = () => {}
    socket.onclose = ({ code, reason }) => {
      // Who comes back after the end is told nothing but this.
      over(code === NORMAL_CLOSURE && !heard && cursor !== null ? { kind: "over" } : endingOfCode(code, reason))
    }
  })
}

function signIn(socket: WebSocket, token: string): void {
  socket.send(JSON.stringify({ op: "auth", token }))
}

/** Puts a new token in the place of the old one; returns whether there was one. */
export async function signInAnew(server: Server, socket: WebSocket): Promise<boolean> {
  const token = isRenewable(server.auth) ? await bearer(server.auth, true).catch(() => null) : null
  if (token === null || socket.readyState !== socket.OPEN) return false
  signIn(socket, token)
  return true
}

/** Returns how to open the stream of a path. */
export function overWebSocket(server: Server, path: string, query: URLSearchParams): Open {
  return (attempt, hear) =>
    openSocket(server, path, query, attempt, {
      onFrame: (frame) => {
        // What a status would have told, if browsers let one see it.
        if (frame.type === "error") return refusalIn(frame)
        hear([frame])
        return undefined
      },
    })
}

/** Returns the ending that an `error` frame means. */
export function refusalIn({ status, detail }: Refusal): Ending {
  return { kind: "refused", status, detail, retryAfterMs: null }
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
      }).catch((error): Ending => ({ kind: "cut", why: String(error) }))
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
