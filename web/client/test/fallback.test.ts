// Falling back to SSE where WebSockets do not work.

import { expect, test } from "vitest"
import { snapshot, withCursor } from "./support/frames.js"
import { eventually, waitForState } from "./support/test_client.js"
import {
  type Responder,
  respondAndStayOpen,
  respondWithStatus,
  serveSockets,
  toEventStream,
} from "./support/test_server.js"
import { closeAfterTest, createSocketClient } from "./support/websockets.js"

for (const transport of ["websocket", "multiplex"] as const) {
  const watchBlocked = async (respond: Responder) => {
    const server = closeAfterTest(
      await serveSockets(
        () => {},
        (socket) => socket.terminate(),
        respond,
      ),
    )
    return createSocketClient(server.url, { transport }).client.watch("chat", "r1")
  }

  test(`${transport}: where WebSockets fail, the stream uses SSE`, async () => {
    const stream = await watchBlocked(respondAndStayOpen(toEventStream([withCursor("c1", snapshot())])))
    await waitForState(stream, "live")
  })

  test(`${transport}: the reason of a refused handshake is requested over HTTP`, async () => {
    const stream = await watchBlocked(respondWithStatus(403, {}, '{"detail": "Not yours"}'))
    expect((await waitForState(stream, "failed")).error).toMatchObject({ status: 403, message: "Not yours" })
  })

  test(`${transport}: behind a proxy that swallows messages, the stream uses SSE`, async () => {
    const server = closeAfterTest(
      await serveSockets(
        () => {},
        () => {},
        respondAndStayOpen(toEventStream([withCursor("c1", snapshot())])),
      ),
    )
    const { client: one, clock } = createSocketClient(server.url, { transport })
    const stream = one.watch("chat", "r1")
    await eventually(() => server.sockets.length === 1)
    clock.advance(45_000)
    await waitForState(stream, "live")
    expect(server.requests.length).toBe(1)
  })
}
