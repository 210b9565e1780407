// Streams over WebSockets: a part of its own, since those who use SSE alone need not load it.

import { ALL_RUNS, type Ask, pathOf, queryOf } from "./asks.js"
import type { Server } from "./http.js"
import type { Open, Transport } from "./link.js"
import { Multiplex } from "./multiplex.js"
import { Tabs } from "./tabs.js"
import type { TransportName } from "./types.js"
import { overWebSocket, withFallback } from "./websocket.js"

/**
 * Returns how streams are opened over WebSockets.
 *
 * @param shareAs name under which tabs share a connection; `undefined`: they don't
 * @param sse what to fall back on
 */
export function overSockets(
  server: Server,
  transport: TransportName,
  shareAs: string | undefined,
  sse: (ask: Ask) => Open,
): Transport {
  const own = new Multiplex(server)
  const many = shareAs === undefined ? own : (tabs(server, shareAs, own) ?? own)
  const single = transport === "websocket" && shareAs === undefined
  const socket = (ask: Ask) =>
    // The path of many runs speaks of many streams, whatever the transport is called.
    single && pathOf(ask) !== ALL_RUNS ? overWebSocket(server, pathOf(ask), queryOf(ask)) : many.stream(ask)
  return { open: (ask) => withFallback(socket(ask), sse(ask)), streamsPosts: false, close: () => many.close() }
}

/** All tabs' streams on one connection, where the browser can do that. */
function tabs(server: Server, name: string, own: Multiplex): Tabs | null {
  const { locks, BroadcastChannel, clock } = server.platform
  if (locks === undefined || BroadcastChannel === undefined) return null
  return new Tabs({ name, locks, BroadcastChannel, clock, own })
}
