// Selects among the transports over WebSockets. Loaded on demand, since clients that use SSE alone don't need it.

import { SharedConnection } from "../tabs/shared_connection.js"
import type { TransportName } from "../types.js"
import { withFallback } from "./fallback.js"
import type { ServerAccess } from "./http.js"
import { MultiplexedConnection } from "./multiplex.js"
import { buildStreamPath, MULTI_RUN_PATH, type StreamRequest } from "./stream_request.js"
import type { Connector, Transport } from "./transport.js"
import { createWebSocketConnector } from "./websocket.js"

/**
 * Return a transport over WebSockets, which falls back to SSE.
 *
 * @param shareAs name under which tabs share a connection; `undefined` if they don't
 */
export function createWebSocketTransport(
  server: ServerAccess,
  transport: TransportName,
  shareAs: string | undefined,
  createSse: (request: StreamRequest) => Connector,
): Transport {
  const ownConnection = new MultiplexedConnection(server)
  const connection = (shareAs !== undefined && shareConnection(server, shareAs, ownConnection)) || ownConnection
  const isSingle = transport === "websocket" && shareAs === undefined
  const createSocket = (request: StreamRequest) =>
    // A WebSocket at this path is always multiplexed, whatever the transport.
    isSingle && buildStreamPath(request) !== MULTI_RUN_PATH
      ? createWebSocketConnector(server, request)
      : connection.createConnector(request)
  return {
    createConnector: (request) => withFallback(createSocket(request), createSse(request)),
    canStreamPost: false,
    close: () => connection.close(),
  }
}

/** Share one connection between tabs; `null` if the browser cannot. */
function shareConnection(
  server: ServerAccess,
  name: string,
  ownConnection: MultiplexedConnection,
): SharedConnection | null {
  const { locks, BroadcastChannel, clock } = server.platform
  if (locks === undefined || BroadcastChannel === undefined) return null
  return new SharedConnection({ name, locks, BroadcastChannel, clock, ownConnection })
}
