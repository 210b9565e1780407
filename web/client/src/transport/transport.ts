// What the transports (SSE, WebSocket, multiplexed, shared between tabs) have in common.
//
// A connector opens one connection and resolves when that connection ends. It never reconnects and never throws
// for network errors: `stream/reconnection.ts` decides what follows from a `ConnectionEnd`.

import type { Frame } from "../protocol/frames.js"
import type { StreamRequest } from "./stream_request.js"

/** Reason of `signal` if the connection seems to be dead. A connection that is shared with other streams is replaced. */
export const DEAD = "dead"

export interface ConnectOptions {
  /** Where to resume; `null` starts with a snapshot. */
  readonly cursor: string | null
  /** Whether a new credential is needed, because the last one was refused or is about to expire. */
  readonly refresh: boolean
  /** Closes the connection. */
  readonly signal: AbortSignal
}

/** Receives the frames of a connection, in the groups in which they arrive from the network. */
export type OnFrames = (frames: readonly Frame[]) => void

export type Connector = (options: ConnectOptions, onFrames: OnFrames) => Promise<ConnectionEnd>

export interface Transport {
  createConnector(request: StreamRequest): Connector
  /** Whether the response to a trigger (POST) can be the stream itself. */
  readonly canStreamPost: boolean
  close(): void
}

/** How a connection ended. Plain JSON: tabs send it to each other. */
export type ConnectionEnd =
  /** The connection broke, or none was made. The state of the stream is unknown. */
  | { readonly kind: "lost"; readonly reason: string }
  /** The stream is complete: status 204, or close code 1000 when resuming after the end. */
  | { readonly kind: "complete" }
  /** An HTTP status, or an `error` frame with one. */
  | { readonly kind: "refused"; readonly status: number; readonly detail: string; readonly retryAfterMs: number | null }
  /** A `close` frame, or the close code of a WebSocket. */
  | {
      readonly kind: "closed"
      readonly code: number
      readonly reason: string
      readonly reconnect: boolean
      readonly retryMs: number | null
    }
  /** The response is not an event stream. */
  | { readonly kind: "not_a_stream"; readonly status: number; readonly reason: string }

export function lost(reason: string): ConnectionEnd {
  return { kind: "lost", reason }
}
