// Made of the server's JSON Schema by `make frame-types`; to change it, change stream_server/protocol/frames.py.
/** The connection ends, but the stream does not. */
export interface Close {
  type: "close"
  /**
   * Also the close code of a WebSocket. Below 4500 the client should connect again, from 4500 on it should not.
   *
   * - `4001` DRAINING: The server is shutting down.
   * - `4002` SLOW: The client read more slowly than its run produced frames.
   * - `4003` UNAVAILABLE: The journal can't be followed, or Airflow can't be asked, just now.
   *
   * Before the first frame only an `EventSource` is told so, which won't come back after a 503.
   * - `4004` AGED: The connection has lived for as long as this server lets one live.
   * - `4005` INTERNAL: The server lost its place; a new connection starts with a fresh snapshot.
   * - `4006` AUTH_EXPIRING: The caller's token is about to expire; he goes on with another one.
   * - `4007` ACCESS_CHANGED: The caller may see more or less of the run than when he came; a new connection tells him
   * what he may.
   * - `4010` THROTTLED: The caller has, or does, more than one may.
   *
   * Told to an `EventSource`, which gives up after a 429, and to who says on a WebSocket only in a message who he is.
   * - `4500` REFUSED: What was asked for can't be had; the `error` frame before says why.
   * - `4501` UNAUTHENTICATED: The caller did not say who he is, or his token has expired or was revoked.
   * - `4503` FORBIDDEN: The caller may not read this any more.
   * - `4510` IDLE: Nothing was subscribed to.
   */
  code: 4001 | 4002 | 4003 | 4004 | 4005 | 4006 | 4007 | 4010 | 4500 | 4501 | 4503 | 4510 | (number & {})
  /** The same in words, for people. */
  reason: string
  /** Whether the client should connect again; what clients go by that don't know the code. */
  reconnect: boolean
  /** How long to wait before connecting again, in milliseconds. */
  retry_ms?: number | null
  /** On a connection of many streams, what the client called the stream. */
  id?: string
}

/** Nothing happened, and the connection is alive. A frame, since scripts can't see SSE comments. */
export interface Ping {
  type: "ping"
  /** On a connection of many streams, what the client called the stream. */
  id?: string
  /**
   * Place of a client that has received this frame, to come back with; on WebSocket and NDJSON, where the last frame
   * of a batch has it. Over SSE it is the `id` of the event. Opaque.
   */
  cursor?: string
}

/** The token is about to expire. The client can send another one, and the connection goes on. */
export interface AuthExpiring {
  type: "auth_expiring"
  /** When it does. */
  expires_at: string
}

/** What the client asked for on a WebSocket was done. */
export interface Ack {
  type: "ack"
  /** What was done. */
  op: "auth" | "ping" | "subscribe" | "unsubscribe"
  /** What the client called it; empty where it gave no name. */
  id: string
}

/** What the client asked for on a WebSocket was refused. All else goes on. */
export interface Refusal {
  type: "error"
  /** What the client called it; empty where it could not be read. */
  id: string
  /** The `type` of the problem, as in `application/problem+json` (RFC 9457). */
  problem: string
  /** The same in words. */
  title: string
  /** The HTTP status code that a request of its own would have been answered with. */
  status: number
  /** What was wrong, and what would be right. */
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
