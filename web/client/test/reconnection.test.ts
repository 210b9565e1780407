// Failures of servers, proxies and networks.

import { afterEach, expect, test } from "vitest"
import { type ClientOptions, type Frame, type RunStream, StreamError } from "../src/index.js"
import { chunk, end, reset, result, resumed, snapshot, task, withCursor } from "./support/frames.js"
import {
  collectFrames,
  createTestClient,
  eventually,
  type TestClient,
  waitForState,
  waitUntil,
} from "./support/test_client.js"
import {
  type Responder,
  respondAndStayOpen,
  respondWithStatus,
  respondWithStream,
  serve,
  type TestServer,
  toEventStream,
} from "./support/test_server.js"

const servers: TestServer[] = []
const streams: RunStream[] = []
afterEach(async () => {
  for (const stream of streams.splice(0)) stream.close()
  await Promise.all(servers.splice(0).map((server) => server.close()))
})

interface WatchedRun extends TestClient {
  readonly server: TestServer
  readonly stream: RunStream
}

async function watchRun(responders: Responder[], options: ClientOptions = {}): Promise<WatchedRun> {
  const server = await serve(...responders)
  servers.push(server)
  const testClient = createTestClient({ baseUrl: server.url, ...options })
  const stream = testClient.client.watch("chat", "r1")
  streams.push(stream)
  return { ...testClient, server, stream }
}

const SNAPSHOT = toEventStream([withCursor("c1", snapshot())])
const REST = respondWithStream(toEventStream([resumed("c1"), withCursor("c2", result()), withCursor("c3", end())]))

const cursorsOf = (server: TestServer) => server.requests.map(({ url }) => url.searchParams.get("cursor"))

test("the end of a connection is not the end of a stream", async () => {
  const { stream, server } = await watchRun([respondWithStream(SNAPSHOT), respondWithStream(SNAPSHOT), REST])
  await waitForState(stream, "ended")
  expect(cursorsOf(server)).toEqual([null, "c1", "c1"])
})

test.each([403, 404, 422, 501])("a refusal with %i is final, and its error has the reason", async (code) => {
  const { stream, server } = await watchRun([respondWithStatus(code, {}, '{"detail": "No such run", "title": "x"}')])
  const { error } = await waitForState(stream, "failed")
  expect(error).toMatchObject({ code: "refused", status: code, message: "No such run" })
  await expect(stream.result).rejects.toBe(error)
  expect(server.requests.length).toBe(1)
})

test.each([
  [429, { "Retry-After": "7" }, 7000],
  [503, { "Retry-After": "2" }, 2000],
  [503, { "Retry-After": "99999999999" }, 3_600_000],
])("a refusal with %i is temporary, and Retry-After is honoured", async (code, headers, wait) => {
  const { stream, server, clock } = await watchRun([respondWithStatus(code, headers), REST])
  const { error } = await waitUntil(stream, (status) => status.error !== null)
  expect(error?.status).toBe(code)
  expect(stream.state).toBe("connecting")
  expect(clock.next).toBe(wait)
  clock.advance(wait - 1)
  expect(server.requests.length).toBe(1)
  clock.advance(1)
  await waitForState(stream, "ended")
})

test.each([408, 425, 500, 502, 504])("a refusal with %i is temporary", async (code) => {
  const { stream } = await watchRun([respondWithStatus(code, {}, "<html>Bad Gateway</html>"), REST])
  await waitForState(stream, "ended")
})

test("an HTML page of a proxy is not a stream", async () => {
  const { stream } = await watchRun([respondWithStatus(200, { "Content-Type": "text/html" }, "<html>Sign in</html>")])
  const { error } = await waitForState(stream, "failed")
  expect(error).toMatchObject({ code: "not_a_stream", message: "Not an event stream, but text/html" })
})

test("status 204 ends the stream", async () => {
  const { stream } = await watchRun([respondWithStatus(204)])
  await waitForState(stream, "ended")
  await expect(stream.result).rejects.toBeInstanceOf(StreamError)
})

test("attempts to reach a server continue until `giveUpAfterMs`", async () => {
  const server = await serve(REST)
  await server.close()
  const { client, clock } = createTestClient({ baseUrl: server.url, giveUpAfterMs: 60_000 }, { random: () => 0.5 })
  const stream = client.watch("chat", "r1")
  await waitUntil(stream, (status) => status.error?.code === "lost")
  const waits: number[] = []
  while (stream.state !== "failed") {
    waits.push(clock.next ?? 0)
    const { error } = stream.current
    clock.advance(clock.next ?? 0)
    await waitUntil(stream, (status) => status.error !== error, "another attempt")
  }
  expect(waits.slice(0, 7)).toEqual([250, 500, 1000, 2000, 4000, 8000, 15_000])
  expect(stream.current.error?.message).toMatch(/^Given up: /)
})

test("batches that arrive twice, and in another order, are delivered once", async () => {
  const batch = [chunk(1, 0, "a"), withCursor("c2", chunk(1, 1, "b"))]
  const later = [withCursor("c3", task(5, "success")), withCursor("c4", task(4, "running", { task_id: "other" }))]
  const text = toEventStream([withCursor("c1", snapshot()), ...batch, ...batch, ...later, ...later, ...batch])
  const { stream } = await watchRun([respondAndStayOpen(text)])
  const frames = collectFrames(stream)
  await waitForState(stream, "live")
  expect(frames.map(({ type }) => type)).toEqual(["snapshot", "chunk", "chunk", "task", "task"])
  expect(stream.view.output.answer?.text).toBe("ab")
})

test("after a reset, frames with known keys are new again", async () => {
  const text = toEventStream([
    withCursor("c1", snapshot()),
    withCursor("c2", chunk(1, 0, "half")),
    withCursor("c3", result("old", { seq: 2 })),
    reset("cleared"),
    withCursor("c4", snapshot()),
    withCursor("c5", chunk(1, 0, "whole")),
  ])
  const { stream } = await watchRun([respondAndStayOpen(text)])
  await waitForState(stream, "live")
  expect(stream.view).toMatchObject({ resetReason: "cleared", outcome: { kind: "pending" } })
  expect(stream.view.output.answer?.text).toBe("whole")
})

test("unknown frame types are ignored, but their cursors count", async () => {
  const hologram = { type: "hologram", seq: 9, cursor: "c2" } as unknown as Frame
  const { stream, server } = await watchRun([
    respondWithStream(toEventStream([withCursor("c1", snapshot()), hologram])),
    REST,
  ])
  const frames = collectFrames(stream)
  await waitForState(stream, "ended")
  expect(frames.some(({ type }) => (type as string) === "hologram")).toBe(false)
  expect(cursorsOf(server)).toEqual([null, "c2"])
})

test.each(["{", "null", "[]", '"text"', "17"])(
  "malformed data (%s) ends the connection, not the stream",
  async (data) => {
    const { stream } = await watchRun([respondWithStream(`${SNAPSHOT}event: task\ndata: ${data}\n\n`), REST])
    await waitForState(stream, "ended")
  },
)

test("a silent connection becomes stale, then is replaced, and the stream resumes", async () => {
  const { stream, server, clock } = await watchRun([respondAndStayOpen(SNAPSHOT), REST])
  await waitForState(stream, "live")
  clock.advance(22_499)
  expect(stream.state).toBe("live")
  clock.advance(1)
  expect(stream.state).toBe("stale")
  clock.advance(22_500)
  await waitForState(stream, "ended")
  expect(cursorsOf(server)).toEqual([null, "c1"])
})

test("pings keep a connection live, and a longer ping interval is detected", async () => {
  let response: Parameters<Responder>[0] | undefined
  const { stream, clock } = await watchRun([
    (one, request) => {
      response = one
      respondAndStayOpen(SNAPSHOT)(one, request)
    },
  ])
  await waitForState(stream, "live")
  clock.advance(40_000)
  expect(stream.state).toBe("stale")
  response?.write(toEventStream([{ type: "ping" }]))
  await waitForState(stream, "live")
  clock.advance(59_000)
  expect(stream.state).toBe("live")
})

test("a server with a long ping interval is not disconnected again and again", async () => {
  const { stream, clock, server } = await watchRun([
    respondAndStayOpen(SNAPSHOT),
    respondAndStayOpen(toEventStream([resumed("c1")])),
  ])
  await waitForState(stream, "live")
  clock.advance(45_000)
  await eventually(() => server.requests.length === 2)
  await waitForState(stream, "live")
  clock.advance(44_999)
  expect(stream.state).toBe("live")
})

test("a response that never starts is abandoned", async () => {
  const { stream, clock, server } = await watchRun([() => {}, REST])
  await eventually(() => server.requests.length === 1)
  clock.advance(45_000)
  await waitForState(stream, "ended")
})

test("a close frame is final, or has the delay before the reconnect", async () => {
  const close = (code: number, reconnect: boolean): Frame => {
    return { type: "close", code, reason: "Because", reconnect, ...(reconnect ? { retry_ms: 1840 } : {}) }
  }
  const { stream, clock } = await watchRun([
    respondAndStayOpen(SNAPSHOT + toEventStream([close(4001, true)])),
    respondAndStayOpen(toEventStream([close(4503, false)])),
  ])
  const { error } = await waitForState(stream, "resuming")
  expect(error).toMatchObject({ code: "closed_by_server", status: 4001, message: "Because" })
  expect(clock.next).toBe(1840)
  clock.advance(1840)
  expect((await waitForState(stream, "failed")).error).toMatchObject({ code: "closed_by_server", status: 4503 })
})

test("a page that becomes visible reconnects at once, but honours Retry-After", async () => {
  const { stream, clock, server, wake } = await watchRun(
    [respondWithStream(SNAPSHOT), respondWithStatus(503, { "Retry-After": "5" }), REST],
    {
      platform: { random: () => 1 },
    },
  )
  await waitForState(stream, "resuming")
  expect(clock.next).toBe(500)
  wake()
  await waitUntil(stream, (status) => status.error?.status === 503)
  wake()
  expect(server.requests.length).toBe(2)
  clock.advance(5_000)
  wake()
  await waitForState(stream, "ended")
})

test("a page that comes back replaces a connection that may have died", async () => {
  const { stream, clock, wake, server } = await watchRun([respondAndStayOpen(SNAPSHOT), REST])
  await waitForState(stream, "live")
  clock.advance(500)
  wake()
  expect(stream.state).toBe("live")
  clock.advance(4_500)
  wake()
  // Without waiting for the clock.
  await waitForState(stream, "ended")
  expect(cursorsOf(server)).toEqual([null, "c1"])
  expect((await stream.result).kind).toBe("result")
})

test("several signs that a page comes back replace the connection once", async () => {
  const { stream, clock, wake, server } = await watchRun(
    [respondAndStayOpen(SNAPSHOT), respondAndStayOpen(SNAPSHOT)],
    {},
  )
  await waitForState(stream, "live")
  clock.advance(5_000)
  wake()
  wake()
  await eventually(() => server.requests.length === 2)
  await waitForState(stream, "live")
  wake()
  expect(stream.state).toBe("live")
  expect(server.requests.length).toBe(2)
})

test("a refused token is renewed once", async () => {
  const refreshes: boolean[] = []
  const bearer = (refresh: boolean) => {
    refreshes.push(refresh)
    return refresh ? "new" : "old"
  }
  const { stream, server } = await watchRun([respondWithStatus(401), REST], { auth: { bearer } })
  await waitForState(stream, "ended")
  expect(refreshes).toEqual([false, true])
  expect(server.requests.map(({ request }) => request.headers.authorization)).toEqual(["Bearer old", "Bearer new"])
  expect(server.requests.some(({ url }) => /old|new/.test(url.href))).toBe(false)
})

test("a refused token is final if it is new or cannot be renewed", async () => {
  for (const [auth, times] of [
    [{ bearer: () => "token" }, 2],
    [{ bearer: "token" }, 1],
    ["cookie", 1],
  ] as const) {
    const { stream, server } = await watchRun([respondWithStatus(401, {}, '{"detail": "Unknown"}')], { auth })
    expect((await waitForState(stream, "failed")).error).toMatchObject({ code: "unauthenticated", message: "Unknown" })
    expect(server.requests.length).toBe(times)
  }
})

test("a token that expires during a stream is renewed, each time", async () => {
  const expiring: Frame = { type: "close", code: 4006, reason: "Expiring", reconnect: true }
  const again = respondAndStayOpen(toEventStream([resumed("c1"), expiring]))
  const { stream, server } = await watchRun(
    [respondAndStayOpen(SNAPSHOT + toEventStream([expiring])), again, again, REST],
    {
      auth: { bearer: (refresh) => (refresh ? "new" : "old") },
    },
  )
  await waitForState(stream, "ended")
  const tokens = server.requests.map(({ request }) => request.headers.authorization)
  expect(tokens).toEqual(["Bearer old", "Bearer new", "Bearer new", "Bearer new"])
})

test("each connection gets a new ticket", async () => {
  let tickets = 0
  const paths: (readonly string[])[] = []
  const ticket = async (for_: readonly string[]) => {
    paths.push(for_)
    return `ticket-${++tickets}`
  }
  const { stream, server } = await watchRun([respondWithStream(SNAPSHOT), respondWithStatus(401), REST], {
    auth: { ticket },
  })
  await waitForState(stream, "ended")
  expect(server.requests.map(({ url }) => url.searchParams.get("ticket"))).toEqual(["ticket-1", "ticket-2", "ticket-3"])
  expect(paths[0]).toEqual(["/api/v2/dags/chat/dagRuns/r1/stream"])
})

test("a token source may fail temporarily", async () => {
  let calls = 0
  const bearer = async () => {
    if (calls++ === 0) throw new Error("offline")
    return "token"
  }
  const { stream } = await watchRun([REST], { auth: { bearer } })
  await waitForState(stream, "ended")
})

test("a stream resumes from a bookmark without gaps or duplicates", async () => {
  const first = await watchRun([
    respondAndStayOpen(
      toEventStream([withCursor("c1", snapshot()), withCursor("c2", chunk(1, 0, "a")), chunk(2, 1, "b")]),
    ),
  ])
  await waitForState(first.stream, "live")
  expect(first.stream.view.output.answer?.text).toBe("ab")
  const bookmark = JSON.parse(JSON.stringify(first.stream.bookmark))
  const server = await serve(
    respondAndStayOpen(toEventStream([resumed("c2"), chunk(2, 1, "b"), withCursor("c3", chunk(2, 2, "c"))])),
  )
  servers.push(server)
  const stream = createTestClient({ baseUrl: server.url }).client.watch("chat", "r1", { bookmark })
  streams.push(stream)
  await waitForState(stream, "live")
  expect(stream.view.output.answer?.text).toBe("abc")
  expect(cursorsOf(server)).toEqual(["c2"])
})

test("a closed stream sends no further requests, and its result rejects", async () => {
  const controller = new AbortController()
  const server = await serve(respondAndStayOpen(SNAPSHOT))
  servers.push(server)
  const { client, clock } = createTestClient({ baseUrl: server.url })
  const stream = client.watch("chat", "r1", { signal: controller.signal })
  await waitForState(stream, "live")
  controller.abort()
  expect(stream.state).toBe("closed")
  await expect(stream.result).rejects.toMatchObject({ code: "closed" })
  clock.advance(1_000_000)
  expect(server.requests.length).toBe(1)
})

test("a loop iterates to the end; leaving it closes the stream, unless there are other subscribers", async () => {
  const text = toEventStream([
    withCursor("c1", snapshot()),
    task(1, "running"),
    { type: "ping" },
    withCursor("c2", result()),
    withCursor("c3", end()),
  ])
  const { stream } = await watchRun([respondWithStream(text)])
  const types: string[] = []
  for await (const frame of stream) types.push(frame.type)
  expect(types).toEqual(["snapshot", "task", "result", "end"])
  expect(await stream.result).toMatchObject({ kind: "result", value: 42 })

  const left = await watchRun([respondAndStayOpen(text.slice(0, text.indexOf("event: result")))])
  for await (const frame of left.stream) if (frame.type === "task") break
  expect(left.stream.state).toBe("closed")

  const shared = await watchRun([respondAndStayOpen(SNAPSHOT)])
  shared.stream.subscribe(() => {})
  for await (const _ of shared.stream) break
  expect(shared.stream.state).toBe("live")
})

test("a loop over a stream that fails throws", async () => {
  const { stream } = await watchRun([respondWithStatus(404)])
  await expect(async () => {
    for await (const _ of stream) expect.fail("no frame is expected")
  }).rejects.toMatchObject({ code: "refused", status: 404 })
})
