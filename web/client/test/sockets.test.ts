// WebSockets: of one run, of many, and one for all tabs.

import { setMaxListeners } from "node:events"
import { afterEach, expect, test } from "vitest"
import { WebSocket } from "ws"
import type { Client, ClientOptions, Frame, Platform, RunStream } from "../src/index.js"
import { at, chunk, end, result, resumed, snapshot, task } from "./support/frames.js"
import { Browser } from "./support/locks.js"
import { type Answer, events, open, type Socketed, serveSockets, status } from "./support/server.js"
import { type Bench, bench, eventually, reached, until } from "./support/streaming.js"

// Ten tabs in one process wait for each other with one signal each.
setMaxListeners(0)

const closing: { close(): unknown }[] = []
afterEach(async () => {
  for (const one of closing.splice(0)) await one.close()
})

function keep<Kept extends { close(): unknown }>(one: Kept): Kept {
  closing.unshift(one)
  return one
}

const sockets: Partial<Platform> = { WebSocket: WebSocket as never }

/** Frames as the messages of a stream on a WebSocket. */
function send(socket: { send(text: string): void }, frames: readonly Frame[], id?: unknown): void {
  for (const frame of frames) socket.send(JSON.stringify(id === undefined ? frame : { ...frame, id }))
}

/** A server of many streams on one connection: answers a subscription by the frames of its run. */
async function multiplexing(frames: (runId: string, cursor: string | undefined) => Frame[]): Promise<Socketed> {
  return keep(
    await serveSockets((socket, { op, id, run_id, cursor }) => {
      send(socket, [{ type: "ack", op: op as "subscribe", id: String(id ?? "") }])
      if (op === "subscribe") send(socket, frames(String(run_id), cursor as string | undefined), id)
    }),
  )
}

function client(url: string, options: ClientOptions, platform: Partial<Platform> = {}): Bench {
  const bed = bench({ baseUrl: url, ...options }, { ...sockets, ...platform })
  keep(bed.client)
  return bed
}

const subscriptions = (server: Socketed) => server.said.filter(({ op }) => op === "subscribe")

test("a run is followed over a WebSocket of its own, and gone on with over another", async () => {
  const cursors: (string | null)[] = []
  const server = keep(
    await serveSockets(
      () => {},
      (socket, url) => {
        cursors.push(url.searchParams.get("cursor"))
        expect(url.pathname + url.search).toContain("/api/v2/dags/my%20dag/dagRuns/r%2F1/stream?until=run")
        if (cursors.length === 1) send(socket, [at("c1", snapshot())])
        else send(socket, [resumed("c1"), at("c2", result()), at("c3", end())])
        socket.close(cursors.length === 1 ? 1001 : 1000)
      },
    ),
  )
  const stream = client(server.url, { transport: "websocket" }).client.watch("my dag", "r/1", { until: "run" })
  await reached(stream, "ended")
  expect(cursors).toEqual([null, "c1"])
})

test("who comes back after the end is told so by a close with 1000", async () => {
  const server = keep(
    await serveSockets(
      () => {},
      (socket) => socket.close(1000),
    ),
  )
  const bookmark = { cursor: "c9.end", view: (await import("../src/index.js")).NOTHING_KNOWN }
  const stream = client(server.url, { transport: "websocket" }).client.watch("chat", "r1", { bookmark })
  await reached(stream, "ended")
})

test("a token goes into the first message, and a new one into another when it is due", async () => {
  const server = keep(
    await serveSockets((socket, { token }) => {
      if (token !== "old") return
      send(socket, [{ type: "ack", op: "auth", id: "" }, at("c1", snapshot())])
      send(socket, [{ type: "auth_expiring", expires_at: "2026-11-22T14:21:59Z" }])
    }),
  )
  const auth = { bearer: (refresh: boolean) => (refresh ? "new" : "old") }
  const stream = client(server.url, { transport: "websocket", auth }).client.watch("chat", "r1")
  await reached(stream, "live")
  await eventually(() => server.said.length === 2)
  expect(server.said).toEqual([
    { op: "auth", token: "old" },
    { op: "auth", token: "new" },
  ])
})

test("what is refused on an open WebSocket is refused as a status would be", async () => {
  const server = keep(
    await serveSockets((socket) => {
      const problem = { problem: "urn:x", title: "Run not found", detail: "No run 'r1'" }
      send(socket, [{ type: "error", id: "", status: 404, ...problem }])
      send(socket, [{ type: "close", code: 4500, reason: "Run not found", reconnect: false }])
      socket.close(4500)
    }),
  )
  const stream = client(server.url, { transport: "websocket", auth: { bearer: "t" } }).client.watch("chat", "r1")
  const { error } = await reached(stream, "failed")
  expect(error).toMatchObject({ code: "refused", status: 404, message: "No run 'r1'" })
})

for (const transport of ["websocket", "multiplex"] as const) {
  const blocked = async (answer: Answer) => {
    const server = keep(
      await serveSockets(
        () => {},
        (socket) => socket.terminate(),
        answer,
      ),
    )
    return client(server.url, { transport }).client.watch("chat", "r1")
  }

  test(`${transport}: where WebSockets do not get through, the stream comes over SSE`, async () => {
    const stream = await blocked(open(events([at("c1", snapshot())])))
    await reached(stream, "live")
  })

  test(`${transport}: why a handshake was refused is asked over HTTP`, async () => {
    const stream = await blocked(status(403, {}, '{"detail": "Not yours"}'))
    expect((await reached(stream, "failed")).error).toMatchObject({ status: 403, message: "Not yours" })
  })

  test(`${transport}: a proxy that swallows all is left for SSE`, async () => {
    const server = keep(
      await serveSockets(
        () => {},
        () => {},
        open(events([at("c1", snapshot())])),
      ),
    )
    const { client: one, clock } = client(server.url, { transport })
    const stream = one.watch("chat", "r1")
    await eventually(() => server.sockets.length === 1)
    clock.elapse(45_000)
    await reached(stream, "live")
    expect(server.asked.length).toBe(1)
  })
}

test("many runs share one connection; what is refused for one disturbs no other", async () => {
  const server = await multiplexing((runId) => {
    const problem = { type: "error", problem: "", title: "", status: 404, detail: `No run ${runId}` } as const
    return runId === "r3" ? [problem as Frame] : [at("c1", snapshot({ run_id: runId }))]
  })
  const { client: one } = client(server.url, { transport: "multiplex" })
  const streams = ["r1", "r2", "r3"].map((runId) => one.watch("chat", runId, { result: ["answer"] }))
  const [first, second, third] = streams as [RunStream, RunStream, RunStream]
  await Promise.all([reached(first, "live"), reached(second, "live")])
  expect((await reached(third, "failed")).error).toMatchObject({ status: 404, message: "No run r3" })
  expect(server.sockets.length).toBe(1)
  expect([first, second].map(({ view }) => view.runId)).toEqual(["r1", "r2"])
  expect(server.said[0]).toMatchObject({ op: "subscribe", dag_id: "chat", run_id: "r1", result: ["answer"] })
})

test("a ping is heard by all streams of a connection", async () => {
  const server = await multiplexing(() => [at("c1", snapshot())])
  const { client: one, clock } = client(server.url, { transport: "multiplex" })
  const streams = ["r1", "r2"].map((runId) => one.watch("chat", runId))
  for (const stream of streams) await reached(stream, "live")
  clock.elapse(30_000)
  expect(streams.map(({ state }) => state)).toEqual(["stale", "stale"])
  for (const socket of server.sockets) send(socket, [{ type: "ping" }])
  for (const stream of streams) await reached(stream, "live")
})

test("when the connection breaks, all streams go on where they were, on one other", async () => {
  const server = await multiplexing((runId, cursor) =>
    cursor === undefined
      ? [at(`c-${runId}`, snapshot())]
      : [{ ...resumed(cursor), cursor: `d-${runId}` } as Frame, task(1, "running")],
  )
  const { client: one } = client(server.url, { transport: "multiplex" })
  const streams = ["r1", "r2"].map((runId) => one.watch("chat", runId))
  for (const stream of streams) await reached(stream, "live")
  server.sockets[0]?.terminate()
  for (const stream of streams) await until(stream, ({ view }) => view.tasks.answer?.state === "running")
  expect(server.sockets.length).toBe(2)
  const cursors = subscriptions(server).map(({ cursor }) => cursor)
  expect(cursors).toEqual([undefined, undefined, "c-r1", "c-r2"])
})

test("streams whose token has expired go on with another, on the same connection", async () => {
  let refreshed = 0
  const bearer = async (refresh: boolean) => (refresh ? `new-${++refreshed}` : "old")
  const expired: Frame = { type: "close", code: 4501, reason: "Token Expired", reconnect: false }
  const server = keep(
    await serveSockets((socket, { op, id, cursor }) => {
      if (op !== "subscribe") return
      send(socket, cursor === undefined ? [at("c1", snapshot()), expired] : [resumed("c1"), task(1, "running")], id)
    }),
  )
  const { client: one } = client(server.url, { transport: "multiplex", auth: { bearer } })
  const streams = ["r1", "r2"].map((runId) => one.watch("chat", runId))
  for (const stream of streams) await until(stream, ({ view }) => view.tasks.answer?.state === "running")
  expect(server.sockets.length).toBe(1)
  const said = server.said.map(({ op, token }) => token ?? op)
  expect(said.indexOf("new-1")).toBeLessThan(said.lastIndexOf("subscribe"))
})

test("streams whose ticket has expired go on with another, on another connection", async () => {
  let tickets = 0
  const server = keep(
    await serveSockets((socket, { op, id, cursor }) => {
      if (op !== "subscribe") return
      const expired: Frame = { type: "close", code: 4501, reason: "Token Expired", reconnect: false }
      send(socket, cursor === undefined ? [at("c1", snapshot()), expired] : [resumed("c1"), task(1, "running")], id)
    }),
  )
  const ticket = () => `ticket-${++tickets}`
  const { client: one } = client(server.url, { transport: "multiplex", auth: { ticket } })
  const stream = one.watch("chat", "r1")
  await until(stream, ({ view }) => view.tasks.answer?.state === "running")
  expect([server.sockets.length, tickets]).toEqual([2, 2])
})

test("a stream that is closed is unsubscribed; after the last one the connection is closed, too", async () => {
  const server = await multiplexing((runId) =>
    runId === "r1" ? [at("c1", snapshot()), at("c2", end())] : [at("c1", snapshot())],
  )
  const { client: one, clock } = client(server.url, { transport: "multiplex" })
  const [first, second] = ["r1", "r2"].map((runId) => one.watch("chat", runId)) as [RunStream, RunStream]
  await reached(first, "ended")
  await reached(second, "live")
  second.close()
  const id = server.said.find(({ run_id }) => run_id === "r2")?.id
  await eventually(() => server.said.some(({ op }) => op === "unsubscribe"))
  // What has ended needs no unsubscribing.
  expect(server.said.filter(({ op }) => op === "unsubscribe")).toEqual([{ op: "unsubscribe", id }])
  expect(server.sockets[0]?.readyState).toBe(WebSocket.OPEN)
  clock.elapse(1_000)
  await eventually(() => server.sockets[0]?.readyState === WebSocket.CLOSED)
})

test("many runs are followed by a filter, from a cursor", async () => {
  const server = await multiplexing(() => [{ type: "ping", cursor: "c5" } as Frame, at("c6", task(1, "running"))])
  const { client: one } = client(server.url, { transport: "multiplex" })
  const stream = one.follow({ dagId: ["chat"], state: ["running"] }, { cursor: "c4" })
  for await (const frame of stream) {
    expect(frame).toMatchObject({ type: "task", state: "running" })
    break
  }
  expect(stream.cursor).toBe("c6")
  expect(server.said[0]).toMatchObject({
    op: "subscribe",
    dag_id: ["chat"],
    run_id: [],
    state: ["running"],
    cursor: "c4",
  })
})

interface Tab extends Bench {
  readonly kill: () => void
}

/** Opens tabs of one browser, which share a connection. */
function tabs(url: string, count: number): Tab[] {
  const browser = new Browser()
  const name = crypto.randomUUID()
  return Array.from({ length: count }, () => {
    const { locks, kill } = browser.tab()
    return { ...client(url, { shareAs: name }, { locks, BroadcastChannel }), kill }
  })
}

const watched = (tab: { client: Client }, runId = "r1") => tab.client.watch("chat", runId)

test("ten tabs hold one connection", async () => {
  const server = await multiplexing((runId) => [at("c1", snapshot({ run_id: runId }))])
  const streams = tabs(server.url, 10).map((tab, place) => watched(tab, `r${place}`))
  for (const stream of streams) await reached(stream, "live")
  expect(server.sockets.length).toBe(1)
  expect(streams.map(({ view }) => view.runId)).toEqual(Array.from({ length: 10 }, (_, place) => `r${place}`))
})

test("when the leading tab dies in the middle, the others go on where they were, on one other connection", async () => {
  const server = await multiplexing((_, cursor) =>
    cursor === undefined
      ? [at("c1", snapshot()), at("c2", chunk(1, 0, "half an "))]
      : [resumed(cursor), at("c3", chunk(2, 1, "answer")), at("c4", result("half an answer")), at("c5", end())],
  )
  const all = tabs(server.url, 3)
  const streams = all.map((tab) => watched(tab))
  for (const stream of streams) await until(stream, ({ view }) => view.output.answer?.text === "half an ")
  const [leader, ...others] = streams as [RunStream, ...RunStream[]]
  // As a crash would: the connection breaks, and the locks are free.
  server.sockets[0]?.removeAllListeners()
  all[0]?.client.close()
  all[0]?.kill()
  for (const stream of others) await reached(stream, "ended")
  expect(others.map(({ view }) => view.output.answer?.text)).toEqual(["half an answer", "half an answer"])
  expect(leader.state).toBe("closed")
  expect(server.sockets.length).toBe(2)
  expect(subscriptions(server).map(({ cursor }) => cursor)).toEqual([undefined, undefined, undefined, "c2", "c2"])
})

test("what the leading tab has open for one that is gone is closed", async () => {
  const server = await multiplexing(() => [at("c1", snapshot())])
  const [first, second] = tabs(server.url, 2) as [Tab, Tab]
  await reached(watched(first), "live")
  await reached(watched(second, "r2"), "live")
  second.kill()
  await eventually(() => server.said.some(({ op }) => op === "unsubscribe"))
})

test("a leading tab that is asleep is replaced", async () => {
  const server = await multiplexing(() => [at("c1", snapshot())])
  const browser = new Browser()
  let asleep = false
  class Sleepy extends BroadcastChannel {
    override postMessage(message: unknown): void {
      if (!asleep) super.postMessage(message)
    }
  }
  const tab = (Channel: typeof BroadcastChannel) =>
    client(server.url, { shareAs: "sleepy" }, { locks: browser.tab().locks, BroadcastChannel: Channel })
  const sleeper = tab(Sleepy)
  const first = watched(sleeper)
  await reached(first, "live")
  asleep = true
  const second = tab(BroadcastChannel)
  const stream = watched(second, "r2")
  await eventually(() => second.clock.next === 5_000, "the leader is asked")
  second.clock.elapse(5_000)
  asleep = false
  await reached(stream, "live")
  // The other one goes on through this one.
  await eventually(() => subscriptions(server).length === 3, "it asks again")
  await eventually(() => sleeper.clock.next === 1_000, "its connection lingers")
  sleeper.clock.elapse(1_000)
  await eventually(() => server.sockets[0]?.readyState === WebSocket.CLOSED, "its connection is closed")
  await until(first, (now) => now.error === null && now.state === "live", "it goes on")
})

test("without locks, each tab has a connection of its own", async () => {
  const server = await multiplexing(() => [at("c1", snapshot())])
  for (let tab = 0; tab < 2; tab++) {
    const { client: one } = client(server.url, { shareAs: "me" }, { locks: undefined as never })
    await reached(one.watch("chat", "r1"), "live")
  }
  const broken = { request: () => Promise.reject(new DOMException("No", "SecurityError")) } as never
  const { client: one } = client(server.url, { shareAs: "me too" }, { locks: broken, BroadcastChannel })
  await reached(one.watch("chat", "r1"), "live")
  expect(server.sockets.length).toBe(3)
})
