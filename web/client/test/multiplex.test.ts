// Many streams on one WebSocket.

import { expect, test } from "vitest"
import { WebSocket } from "ws"
import type { Frame, RunStream } from "../src/index.js"
import { end, resumed, snapshot, task, withCursor } from "./support/frames.js"
import { eventually, waitForState, waitUntil } from "./support/test_client.js"
import { serveSockets } from "./support/test_server.js"
import {
  closeAfterTest,
  createSocketClient,
  sendFrames,
  serveMultiplexed,
  subscriptionsOf,
} from "./support/websockets.js"

test("many runs share one connection; a refusal of one affects no other", async () => {
  const server = await serveMultiplexed((runId) => {
    const problem = { type: "error", problem: "", title: "", status: 404, detail: `No run ${runId}` } as const
    return runId === "r3" ? [problem as Frame] : [withCursor("c1", snapshot({ run_id: runId }))]
  })
  const { client: one } = createSocketClient(server.url, { transport: "multiplex" })
  const streams = ["r1", "r2", "r3"].map((runId) => one.watch("chat", runId, { result: ["answer"] }))
  const [first, second, third] = streams as [RunStream, RunStream, RunStream]
  await Promise.all([waitForState(first, "live"), waitForState(second, "live")])
  expect((await waitForState(third, "failed")).error).toMatchObject({ status: 404, message: "No run r3" })
  expect(server.sockets.length).toBe(1)
  expect([first, second].map(({ view }) => view.runId)).toEqual(["r1", "r2"])
  expect(server.messages[0]).toMatchObject({ op: "subscribe", dag_id: "chat", run_id: "r1", result: ["answer"] })
})

test("a ping reaches all streams of a connection", async () => {
  const server = await serveMultiplexed(() => [withCursor("c1", snapshot())])
  const { client: one, clock } = createSocketClient(server.url, { transport: "multiplex" })
  const streams = ["r1", "r2"].map((runId) => one.watch("chat", runId))
  for (const stream of streams) await waitForState(stream, "live")
  clock.advance(30_000)
  expect(streams.map(({ state }) => state)).toEqual(["stale", "stale"])
  for (const socket of server.sockets) sendFrames(socket, [{ type: "ping" }])
  for (const stream of streams) await waitForState(stream, "live")
})

test("after a lost connection, all streams resume on one new connection", async () => {
  const server = await serveMultiplexed((runId, cursor) =>
    cursor === undefined
      ? [withCursor(`c-${runId}`, snapshot())]
      : [{ ...resumed(cursor), cursor: `d-${runId}` } as Frame, task(1, "running")],
  )
  const { client: one } = createSocketClient(server.url, { transport: "multiplex" })
  const streams = ["r1", "r2"].map((runId) => one.watch("chat", runId))
  for (const stream of streams) await waitForState(stream, "live")
  server.sockets[0]?.terminate()
  for (const stream of streams) await waitUntil(stream, ({ view }) => view.tasks.answer?.state === "running")
  expect(server.sockets.length).toBe(2)
  const cursors = subscriptionsOf(server).map(({ cursor }) => cursor)
  expect(cursors).toEqual([undefined, undefined, "c-r1", "c-r2"])
})

test("streams with an expired token continue with a new one on the same connection", async () => {
  let refreshed = 0
  const bearer = async (refresh: boolean) => (refresh ? `new-${++refreshed}` : "old")
  const expired: Frame = { type: "close", code: 4501, reason: "Token Expired", reconnect: false }
  const server = closeAfterTest(
    await serveSockets((socket, { op, id, cursor }) => {
      if (op !== "subscribe") return
      sendFrames(
        socket,
        cursor === undefined ? [withCursor("c1", snapshot()), expired] : [resumed("c1"), task(1, "running")],
        id,
      )
    }),
  )
  const { client: one } = createSocketClient(server.url, { transport: "multiplex", auth: { bearer } })
  const streams = ["r1", "r2"].map((runId) => one.watch("chat", runId))
  for (const stream of streams) await waitUntil(stream, ({ view }) => view.tasks.answer?.state === "running")
  expect(server.sockets.length).toBe(1)
  const sent = server.messages.map(({ op, token }) => token ?? op)
  expect(sent.indexOf("new-1")).toBeLessThan(sent.lastIndexOf("subscribe"))
})

test("streams with an expired ticket continue with a new one on a new connection", async () => {
  let tickets = 0
  const server = closeAfterTest(
    await serveSockets((socket, { op, id, cursor }) => {
      if (op !== "subscribe") return
      const expired: Frame = { type: "close", code: 4501, reason: "Token Expired", reconnect: false }
      sendFrames(
        socket,
        cursor === undefined ? [withCursor("c1", snapshot()), expired] : [resumed("c1"), task(1, "running")],
        id,
      )
    }),
  )
  const ticket = () => `ticket-${++tickets}`
  const { client: one } = createSocketClient(server.url, { transport: "multiplex", auth: { ticket } })
  const stream = one.watch("chat", "r1")
  await waitUntil(stream, ({ view }) => view.tasks.answer?.state === "running")
  expect([server.sockets.length, tickets]).toEqual([2, 2])
})

test("a closed stream is unsubscribed; after the last one the connection is closed", async () => {
  const server = await serveMultiplexed((runId) =>
    runId === "r1" ? [withCursor("c1", snapshot()), withCursor("c2", end())] : [withCursor("c1", snapshot())],
  )
  const { client: one, clock } = createSocketClient(server.url, { transport: "multiplex" })
  const [first, second] = ["r1", "r2"].map((runId) => one.watch("chat", runId)) as [RunStream, RunStream]
  await waitForState(first, "ended")
  await waitForState(second, "live")
  second.close()
  const id = server.messages.find(({ run_id }) => run_id === "r2")?.id
  await eventually(() => server.messages.some(({ op }) => op === "unsubscribe"))
  // A stream that has ended needs no `unsubscribe`.
  expect(server.messages.filter(({ op }) => op === "unsubscribe")).toEqual([{ op: "unsubscribe", id }])
  expect(server.sockets[0]?.readyState).toBe(WebSocket.OPEN)
  clock.advance(1_000)
  await eventually(() => server.sockets[0]?.readyState === WebSocket.CLOSED)
})

test("`follow` subscribes with a filter and a cursor", async () => {
  const server = await serveMultiplexed(() => [
    { type: "ping", cursor: "c5" } as Frame,
    withCursor("c6", task(1, "running")),
  ])
  const { client: one } = createSocketClient(server.url, { transport: "multiplex" })
  const stream = one.follow({ dagId: ["chat"], state: ["running"] }, { cursor: "c4" })
  for await (const frame of stream) {
    expect(frame).toMatchObject({ type: "task", state: "running" })
    break
  }
  expect(stream.cursor).toBe("c6")
  expect(server.messages[0]).toMatchObject({
    op: "subscribe",
    dag_id: ["chat"],
    run_id: [],
    state: ["running"],
    cursor: "c4",
  })
})

test.each(["wake", "silence"])("after a %s, streams leave a dead connection that they share", async (sign) => {
  const server = await serveMultiplexed((_, cursor) =>
    cursor === undefined ? [withCursor("c1", snapshot())] : [resumed(cursor), withCursor("c2", end())],
  )
  const { client: one, clock, wake } = createSocketClient(server.url, { transport: "multiplex" })
  const streams = ["r1", "r2"].map((runId) => one.watch("chat", runId))
  for (const stream of streams) await waitForState(stream, "live")
  if (sign === "wake") {
    clock.advance(5_000)
    wake()
  } else clock.advance(45_000)
  for (const stream of streams) await waitForState(stream, "ended")
  expect(server.sockets.length).toBe(2)
})
