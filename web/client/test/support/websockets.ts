// Servers and clients of WebSockets.

import { afterEach } from "vitest"
import { WebSocket } from "ws"
import type { ClientOptions, Frame, Platform } from "../../src/index.js"
import { createTestClient, type TestClient } from "./test_client.js"
import { serveSockets, type WebSocketTestServer } from "./test_server.js"

const closing: { close(): unknown }[] = []
afterEach(async () => {
  for (const one of closing.splice(0)) await one.close()
})

/** Closes a client or server after the present test, the last one first. */
export function closeAfterTest<Kept extends { close(): unknown }>(one: Kept): Kept {
  closing.unshift(one)
  return one
}

const sockets: Partial<Platform> = { WebSocket: WebSocket as never }

/** Sends frames as messages; with the id of a multiplexed stream, if given. */
export function sendFrames(socket: { send(text: string): void }, frames: readonly Frame[], id?: unknown): void {
  for (const frame of frames) socket.send(JSON.stringify(id === undefined ? frame : { ...frame, id }))
}

/** Serves multiplexed streams: each subscription gets the frames of its run. */
export async function serveMultiplexed(
  frames: (runId: string, cursor: string | undefined) => Frame[],
): Promise<WebSocketTestServer> {
  return closeAfterTest(
    await serveSockets((socket, { op, id, run_id, cursor }) => {
      sendFrames(socket, [{ type: "ack", op: op as "subscribe", id: String(id ?? "") }])
      if (op === "subscribe") sendFrames(socket, frames(String(run_id), cursor as string | undefined), id)
    }),
  )
}

export function createSocketClient(url: string, options: ClientOptions, platform: Partial<Platform> = {}): TestClient {
  const testClient = createTestClient({ baseUrl: url, ...options }, { ...sockets, ...platform })
  closeAfterTest(testClient.client)
  return testClient
}

export const subscriptionsOf = (server: WebSocketTestServer) => server.messages.filter(({ op }) => op === "subscribe")
