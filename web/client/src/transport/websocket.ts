// One WebSocket (RFC 6455). Each text message is a frame; the member `cursor` is in the last frame of a batch.

import { CLOSE_CODES, type Refusal } from "../protocol/connection_frames.js"
import type { Frame } from "../protocol/frames.js"
import { buildStreamUrl, canRenewCredential, getBearerToken, type ServerAccess } from "./http.js"
import { buildQuery, buildStreamPath, type StreamRequest } from "./stream_request.js"
import { type ConnectionEnd, type ConnectOptions, type Connector, lost } from "./transport.js"

const NORMAL_CLOSURE = 1000

/** Close codes from here on are final (`docs/protocol.md`, close codes). */
const FIRST_FINAL_CODE = 4500

/** Some proxies neither accept nor refuse a WebSocket handshake. */
export const HANDSHAKE_TIMEOUT_MS = 10_000

export interface SocketHandlers {
  onOpen?(socket: WebSocket): void
  /** Returns how the connection ended, if the frame ends it. */
  onFrame(frame: Frame): ConnectionEnd | undefined
}

/** Open a WebSocket and authenticate, also when the token is about to expire. Resolves when it is closed. */
export async function openWebSocket(
  server: ServerAccess,
  path: string,
  query: URLSearchParams,
  { cursor, refresh, signal }: ConnectOptions,
  handlers: SocketHandlers,
): Promise<ConnectionEnd> {
  const { WebSocket, clock } = server.platform
  if (WebSocket === undefined) return lost("WebSockets are not available here")
  const url = new URL(await buildStreamUrl(server, path, query, cursor), globalThis.location?.href)
  url.protocol = url.protocol.replace("http", "ws")
  const token = await getBearerToken(server.auth, refresh)
  if (signal.aborted) return lost("Aborted")
  const socket = new WebSocket(url)
  return new Promise((resolve) => {
    let hasReceived = false
    const finish = (end: ConnectionEnd) => {
      cancelTimeout()
      socket.onmessage = null
      signal.removeEventListener("abort", abort)
      resolve(end)
    }
    const closeWith = (end: ConnectionEnd) => {
      socket.close()
      // Not in `onclose`: on a dead connection that event may take minutes.
      finish(end)
    }
    const abort = () => closeWith(lost("Aborted"))
    const cancelTimeout = clock.after(HANDSHAKE_TIMEOUT_MS, () => {
      if (socket.readyState === WebSocket.CONNECTING) abort()
    })
    signal.addEventListener("abort", abort)
    socket.onopen = () => {
      if (token !== null) sendToken(socket, token)
      handlers.onOpen?.(socket)
    }
    socket.onmessage = ({ data }) => {
      hasReceived = true
      try {
        const frame = JSON.parse(String(data)) as Frame
        if (frame.type === "auth_expiring") void renewToken(server, socket)
        const end = handlers.onFrame(frame)
        if (end !== undefined) closeWith(end)
      } catch (error) {
        closeWith(lost(`Malformed message: ${error}`))
      }
    }
    // The event has no details, and `close` always follows. Without a handler, the package `ws` would throw.
    socket.onerror = () => {}
    socket.onclose = ({ code, reason }) => {
      // The server's only response to a client that resumes after the end of its stream is close code 1000.
      const isComplete = code === NORMAL_CLOSURE && !hasReceived && cursor !== null
      finish(isComplete ? { kind: "complete" } : endOfCloseCode(code, reason))
    }
  })
}

function sendToken(socket: WebSocket, token: string): void {
  // In a message, not in the URL: URLs are logged. Browsers cannot set headers of a handshake.
  socket.send(JSON.stringify({ op: "auth", token }))
}

/** Send a new token on an open connection; returns whether there was one. */
export async function renewToken(server: ServerAccess, socket: WebSocket): Promise<boolean> {
  const token = canRenewCredential(server.auth) ? await getBearerToken(server.auth, true).catch(() => null) : null
  if (token === null || socket.readyState !== socket.OPEN) return false
  sendToken(socket, token)
  return true
}

/** Connect to one stream on a WebSocket of its own. */
export function createWebSocketConnector(server: ServerAccess, request: StreamRequest): Connector {
  return (options, onFrames) =>
    openWebSocket(server, buildStreamPath(request), buildQuery(request), options, {
      onFrame: (frame) => {
        // Browsers hide the status of a refused handshake. The server therefore accepts it and sends an `error` frame.
        if (frame.type === "error") return refusalOf(frame)
        onFrames([frame])
        return undefined
      },
    })
}

export function refusalOf({ status, detail }: Refusal): ConnectionEnd {
  return { kind: "refused", status, detail, retryAfterMs: null }
}

/** Return what a WebSocket's close code means (RFC 6455 section 7.4). */
export function endOfCloseCode(code: number, reason: string): ConnectionEnd {
  if (code < 4000) return lost(reason || `The connection was closed (code ${code})`)
  // The server closed the connection before it received the subscription of this stream: connect again.
  if (code === CLOSE_CODES.IDLE) return lost(reason)
  return {
    kind: "closed",
    code,
    reason: reason || `Closed with code ${code}`,
    reconnect: code < FIRST_FINAL_CODE,
    retryMs: null,
  }
}
