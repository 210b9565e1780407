// Streams on WebSockets of their own.

import { expect, test } from "vitest"
import { EMPTY_VIEW } from "../src/index.js"
import { end, result, resumed, snapshot, withCursor } from "./support/frames.js"
import { eventually, waitForState } from "./support/test_client.js"
import { serveSockets } from "./support/test_server.js"
import { closeAfterTest, createSocketClient, sendFrames } from "./support/websockets.js"

test("a run is streamed over a WebSocket, and resumes over another", async () => {
  const cursors: (string | null)[] = []
  const server = closeAfterTest(
    await serveSockets(
      () => {},
      (socket, url) => {
        cursors.push(url.searchParams.get("cursor"))
        expect(url.pathname + url.search).toContain("/api/v2/dags/my%20dag/dagRuns/r%2F1/stream?until=run")
        if (cursors.length === 1) sendFrames(socket, [withCursor("c1", snapshot())])
        else sendFrames(socket, [resumed("c1"), withCursor("c2", result()), withCursor("c3", end())])
        socket.close(cursors.length === 1 ? 1001 : 1000)
      },
    ),
  )
  const stream = createSocketClient(server.url, { transport: "websocket" }).client.watch("my dag", "r/1", {
    until: "run",
  })
  await waitForState(stream, "ended")
  expect(cursors).toEqual([null, "c1"])
})

test("close code 1000 ends a stream that resumes after its end", async () => {
  const server = closeAfterTest(
    await serveSockets(
      () => {},
      (socket) => socket.close(1000),
    ),
  )
  const bookmark = { cursor: "c9.end", view: EMPTY_VIEW }
  const stream = createSocketClient(server.url, { transport: "websocket" }).client.watch("chat", "r1", { bookmark })
  await waitForState(stream, "ended")
})

test("the token is in the first message, and a new one is sent before it expires", async () => {
  const server = closeAfterTest(
    await serveSockets((socket, { token }) => {
      if (token !== "old") return
      sendFrames(socket, [{ type: "ack", op: "auth", id: "" }, withCursor("c1", snapshot())])
      sendFrames(socket, [{ type: "auth_expiring", expires_at: "2026-11-22T14:21:59Z" }])
    }),
  )
  const auth = { bearer: (refresh: boolean) => (refresh ? "new" : "old") }
  const stream = createSocketClient(server.url, { transport: "websocket", auth }).client.watch("chat", "r1")
  await waitForState(stream, "live")
  await eventually(() => server.messages.length === 2)
  expect(server.messages).toEqual([
    { op: "auth", token: "old" },
    { op: "auth", token: "new" },
  ])
})

test("an error frame on an open WebSocket is a refusal", async () => {
  const server = closeAfterTest(
    await serveSockets((socket) => {
      const problem = { problem: "urn:x", title: "Run not found", detail: "No run 'r1'" }
      sendFrames(socket, [{ type: "error", id: "", status: 404, ...problem }])
      sendFrames(socket, [{ type: "close", code: 4500, reason: "Run not found", reconnect: false }])
      socket.close(4500)
    }),
  )
  const stream = createSocketClient(server.url, { transport: "websocket", auth: { bearer: "t" } }).client.watch(
    "chat",
    "r1",
  )
  const { error } = await waitForState(stream, "failed")
  expect(error).toMatchObject({ code: "refused", status: 404, message: "No run 'r1'" })
})
