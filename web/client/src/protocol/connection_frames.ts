// Made of the server's JSON Schema by `make frame-types`; to change it, change stream_server/protocol/frames.py.
/** The connection ends before the stream is complete. */
export interface Close {
  type: "close"
  /**
   * Also the close code of a WebSocket. Below 4500 the client should reconnect, from 4500 on it should not.
   *
   * - `4001` DRAINING: The server is shutting down.
   * - `4002` SLOW: The client reads more slowly than its stream grows.
   * - `4003` UNAVAILABLE: The journal cannot be read, or Airflow cannot be asked, at the moment. Before the first
   * frame only an `EventSource` gets this code, because it does not reconnect after a 503.
   * - `4004` AGED: The connection has reached the maximum age that the server allows.
   * - `4005` INTERNAL: The server lost its position; a new connection starts with a fresh snapshot.
   * - `4006` AUTH_EXPIRING: The caller's token expires soon; the client should reconnect with a new one.
   * - `4007` ACCESS_CHANGED: The caller may see more or less than when the stream started; a new connection shows
   * what the caller may see.
   * - `4010` THROTTLED: The caller has exceeded a limit per caller. Only an `EventSource`, which gives up after a
   * 429, and a WebSocket whose caller authenticates with a message get this code.
   * - `4500` REFUSED: The request was refused; the preceding `error` frame has the reason.
   * - `4501` UNAUTHENTICATED: The caller did not authenticate, or the token expired or was revoked.
   * - `4503` FORBIDDEN: The caller may no longer read this.
   * - `4510` IDLE: The client had no subscription for too long.
   */
  code: 4001 | 4002 | 4003 | 4004 | 4005 | 4006 | 4007 | 4010 | 4500 | 4501 | 4503 | 4510 | (number & {})
  /** The reason in words, for people. */
  reason: string
  /** Whether the client should reconnect. Clients that do not know the code rely on it. */
  reconnect: boolean
  /** How long to wait before reconnecting, in milliseconds. */
  retry_ms?: number | null
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
}

/** Heartbeat. It is a frame because scripts in browsers do not see SSE comments. */
export interface Ping {
  type: "ping"
  /** On a connection with several streams, the `id` that the client gave the stream. */
  id?: string
  /**
   * Position in the stream after this frame. A client that reconnects sends it back to resume from there. On
   * WebSocket and NDJSON the last frame of a batch has it; over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The token expires soon. If the client sends a new one, the connection stays open. */
export interface AuthExpiring {
  type: "auth_expiring"
  /** When the token expires. */
  expires_at: string
}

/** An operation that the client requested on a WebSocket was done. */
export interface Ack {
  type: "ack"
  /** The operation. */
  op: "answer" | "auth" | "ping" | "subscribe" | "unsubscribe"
  /** The `id` that the client gave; empty if it gave none. */
  id: string
}

/** An operation that the client requested on a WebSocket was refused. Other streams are not affected. */
export interface Refusal {
  type: "error"
  /** The `id` that the client gave; empty if it could not be read. */
  id: string
  /** The `type` of the problem, as in `application/problem+json` (RFC 9457). */
  problem: string
  /** Short summary of the problem. */
  title: string
  /** HTTP status code that a separate request would have received. */
  status: number
  /** What is wrong, and what would be right. */
  detail: string
}

/** Why a connection ends before its stream does; also the close code of a WebSocket. */
export const CLOSE_CODES = {
  DRAINING: 4001,
  SLOW: 4002,
  UNAVAILABLE: 4003,
  AGED: 4004,
  INTERNAL: 4005,
  AUTH_EXPIRING: 4006,
  ACCESS_CHANGED: 4007,
  THROTTLED: 4010,
  REFUSED: 4500,
  UNAUTHENTICATED: 4501,
  FORBIDDEN: 4503,
  IDLE: 4510,
} as const
