// What servers, proxies and networks do to a stream.

import { afterEach, expect, test } from "vitest"
import { type ClientOptions, type Frame, type RunStream, StreamError } from "../src/index.js"
import { at, chunk, end, reset, result, resumed, snapshot, task } from "./support/frames.js"
import { type Answer, events, open, serve, status, type TestServer, whole } from "./support/server.js"
import { type Bench, bench, collected, eventually, reached, until } from "./support/streaming.js"

const servers: TestServer[] = []
const streams: RunStream[] = []
afterEach(async () => {
  for (const stream of streams.splice(0)) stream.close()
  await Promise.all(servers.splice(0).map((server) => server.close()))
})

interface Watching extends Bench {
  readonly server: TestServer
  readonly stream: RunStream
}

async function watching(answers: Answer[], options: ClientOptions = {}): Promise<Watching> {
  const server = await serve(...answers)
  servers.push(server)
  const bed = bench({ baseUrl: server.url, ...options })
  const stream = bed.client.watch("chat", "r1")
  streams.push(stream)
  return { ...bed, server, stream }
}

const BEGUN = events([at("c1", snapshot())])
const OVER = whole(events([resumed("c1"), at("c2", result()), at("c3", end())]))

const cursors = (server: TestServer) => server.asked.map(({ url }) => url.searchParams.get("cursor"))

test("the end of a connection is not the end of a stream", async () => {
  const { stream, server } = await watching([whole(BEGUN), whole(BEGUN), OVER])
  await reached(stream, "ended")
  expect(cursors(server)).toEqual([null, "c1", "c1"])
})

test.each([403, 404, 422, 501])("a refusal with %i is final, and says why", async (code) => {
  const { stream, server } = await watching([status(code, {}, '{"detail": "No such run", "title": "x"}')])
  const { error } = await reached(stream, "failed")
  expect(error).toMatchObject({ code: "refused", status: code, message: "No such run" })
  await expect(stream.result).rejects.toBe(error)
  expect(server.asked.length).toBe(1)
})

test.each([
  [429, { "Retry-After": "7" }, 7000],
  [503, { "Retry-After": "2" }, 2000],
  [503, { "Retry-After": "99999999999" }, 3_600_000],
])("a refusal with %i may pass, and Retry-After is kept", async (code, headers, wait) => {
  const { stream, server, clock } = await watching([status(code, headers), OVER])
  const { error } = await until(stream, (now) => now.error !== null)
  expect(error?.status).toBe(code)
  expect(stream.state).toBe("connecting")
  expect(clock.next).toBe(wait)
  clock.elapse(wait - 1)
  expect(server.asked.length).toBe(1)
  clock.elapse(1)
  await reached(stream, "ended")
})

test.each([408, 425, 500, 502, 504])("a refusal with %i may pass", async (code) => {
  const { stream } = await watching([status(code, {}, "<html>Bad Gateway</html>"), OVER])
  await reached(stream, "ended")
})

test("a page of a proxy is no stream", async () => {
  const { stream } = await watching([status(200, { "Content-Type": "text/html" }, "<html>Sign in</html>")])
  const { error } = await reached(stream, "failed")
  expect(error).toMatchObject({ code: "not_a_stream", message: "Not an event stream, but text/html" })
})

test("204 says that nothing comes any more", async () => {
  const { stream } = await watching([status(204)])
  await reached(stream, "ended")
  await expect(stream.result).rejects.toBeInstanceOf(StreamError)
})

test("a server that is not there is asked again, until patience ends", async () => {
  const server = await serve(OVER)
  await server.close()
  const { client, clock } = bench({ baseUrl: server.url, patienceMs: 60_000 }, { random: () => 0.5 })
  const stream = client.watch("chat", "r1")
  await until(stream, (now) => now.error?.code === "lost")
  const waits: number[] = []
  while (stream.state !== "failed") {
    waits.push(clock.next ?? 0)
    const { error } = stream.current
    clock.elapse(clock.next ?? 0)
    await until(stream, (now) => now.error !== error, "another attempt")
  }
  expect(waits.slice(0, 7)).toEqual([250, 500, 1000, 2000, 4000, 8000, 15_000])
  expect(stream.current.error?.message).toMatch(/^Given up: /)
})

test("batches that come twice, and in another order, are told once", async () => {
  const batch = [chunk(1, 0, "a"), at("c2", chunk(1, 1, "b"))]
  const later = [at("c3", task(5, "success")), at("c4", task(4, "running", { task_id: "other" }))]
  const text = events([at("c1", snapshot()), ...batch, ...batch, ...later, ...later, ...batch])
  const { stream } = await watching([open(text)])
  const frames = collected(stream)
  await reached(stream, "live")
  expect(frames.map(({ type }) => type)).toEqual(["snapshot", "chunk", "chunk", "task", "task"])
  expect(stream.view.output.answer?.text).toBe("ab")
})

test("a reset takes back what was told, and what comes after it is news again", async () => {
  const text = events([
    at("c1", snapshot()),
    at("c2", chunk(1, 0, "half")),
    at("c3", result("old", { seq: 2 })),
    reset("cleared"),
    at("c4", snapshot()),
    at("c5", chunk(1, 0, "whole")),
  ])
  const { stream } = await watching([open(text)])
  await reached(stream, "live")
  expect(stream.view).toMatchObject({ resetReason: "cleared", outcome: { kind: "pending" } })
  expect(stream.view.output.answer?.text).toBe("whole")
})

test("types and members that are not known are passed over, and their cursors kept", async () => {
  const hologram = { type: "hologram", seq: 9, cursor: "c2" } as unknown as Frame
  const { stream, server } = await watching([whole(events([at("c1", snapshot()), hologram])), OVER])
  const frames = collected(stream)
  await reached(stream, "ended")
  expect(frames.some(({ type }) => (type as string) === "hologram")).toBe(false)
  expect(cursors(server)).toEqual([null, "c2"])
})

test.each(["{", "null", "[]", '"text"', "17"])(
  "data that is no frame (%s) breaks the connection, not the page",
  async (data) => {
    const { stream } = await watching([whole(`${BEGUN}event: task\ndata: ${data}\n\n`), OVER])
    await reached(stream, "ended")
  },
)

test("a silent connection is doubted, then given up, and the stream goes on where it was", async () => {
  const { stream, server, clock } = await watching([open(BEGUN), OVER])
  await reached(stream, "live")
  clock.elapse(22_499)
  expect(stream.state).toBe("live")
  clock.elapse(1)
  expect(stream.state).toBe("stale")
  clock.elapse(22_500)
  await reached(stream, "ended")
  expect(cursors(server)).toEqual([null, "c1"])
})

test("pings keep a connection live, and a longer interval between them is learned", async () => {
  let response: Parameters<Answer>[0] | undefined
  const { stream, clock } = await watching([
    (one, asked) => {
      response = one
      open(BEGUN)(one, asked)
    },
  ])
  await reached(stream, "live")
  clock.elapse(40_000)
  expect(stream.state).toBe("stale")
  response?.write(events([{ type: "ping" }]))
  await reached(stream, "live")
  clock.elapse(59_000)
  expect(stream.state).toBe("live")
})

test("a server whose pings are far apart is not left again and again", async () => {
  const { stream, clock, server } = await watching([open(BEGUN), open(events([resumed("c1")]))])
  await reached(stream, "live")
  clock.elapse(45_000)
  await eventually(() => server.asked.length === 2)
  await reached(stream, "live")
  clock.elapse(44_999)
  expect(stream.state).toBe("live")
})

test("an answer that never begins is given up", async () => {
  const { stream, clock, server } = await watching([() => {}, OVER])
  await eventually(() => server.asked.length === 1)
  clock.elapse(45_000)
  await reached(stream, "ended")
})

test("a close that says so is final; another names when to come back", async () => {
  const close = (code: number, reconnect: boolean): Frame => {
    return { type: "close", code, reason: "Because", reconnect, ...(reconnect ? { retry_ms: 1840 } : {}) }
  }
  const { stream, clock } = await watching([
    open(BEGUN + events([close(4001, true)])),
    open(events([close(4503, false)])),
  ])
  const { error } = await reached(stream, "resuming")
  expect(error).toMatchObject({ code: "closed_by_server", status: 4001, message: "Because" })
  expect(clock.next).toBe(1840)
  clock.elapse(1840)
  expect((await reached(stream, "failed")).error).toMatchObject({ code: "closed_by_server", status: 4503 })
})

test("a page that is shown again does not wait, but for what the server asks", async () => {
  const { stream, clock, server, wake } = await watching([whole(BEGUN), status(503, { "Retry-After": "5" }), OVER], {
    platform: { random: () => 1 },
  })
  await reached(stream, "resuming")
  expect(clock.next).toBe(500)
  wake()
  await until(stream, (now) => now.error?.status === 503)
  wake()
  expect(server.asked.length).toBe(2)
  clock.elapse(5_000)
  wake()
  await reached(stream, "ended")
})

test("a page that slept through a ping connects again at once", async () => {
  const { stream, clock, wake } = await watching([open(BEGUN), OVER], { platform: { random: () => 1 } })
  await reached(stream, "live")
  clock.elapse(14_000)
  wake()
  expect(stream.state).toBe("live")
  clock.elapse(2_000)
  wake()
  await reached(stream, "ended")
})

test("a token that is refused is replaced once", async () => {
  const asked: boolean[] = []
  const bearer = (refresh: boolean) => {
    asked.push(refresh)
    return refresh ? "new" : "old"
  }
  const { stream, server } = await watching([status(401), OVER], { auth: { bearer } })
  await reached(stream, "ended")
  expect(asked).toEqual([false, true])
  expect(server.asked.map(({ request }) => request.headers.authorization)).toEqual(["Bearer old", "Bearer new"])
  expect(server.asked.some(({ url }) => /old|new/.test(url.href))).toBe(false)
})

test("a new token that is refused, too, is the end; so is one that can't be replaced", async () => {
  for (const [auth, times] of [
    [{ bearer: () => "token" }, 2],
    [{ bearer: "token" }, 1],
    ["cookie", 1],
  ] as const) {
    const { stream, server } = await watching([status(401, {}, '{"detail": "Who?"}')], { auth })
    expect((await reached(stream, "failed")).error).toMatchObject({ code: "unauthenticated", message: "Who?" })
    expect(server.asked.length).toBe(times)
  }
})

test("a token that expires in the middle is replaced, each time", async () => {
  const expiring: Frame = { type: "close", code: 4006, reason: "Expiring", reconnect: true }
  const again = open(events([resumed("c1"), expiring]))
  const { stream, server } = await watching([open(BEGUN + events([expiring])), again, again, OVER], {
    auth: { bearer: (refresh) => (refresh ? "new" : "old") },
  })
  await reached(stream, "ended")
  const tokens = server.asked.map(({ request }) => request.headers.authorization)
  expect(tokens).toEqual(["Bearer old", "Bearer new", "Bearer new", "Bearer new"])
})

test("each connection has a ticket of its own", async () => {
  let tickets = 0
  const paths: (readonly string[])[] = []
  const ticket = async (for_: readonly string[]) => {
    paths.push(for_)
    return `ticket-${++tickets}`
  }
  const { stream, server } = await watching([whole(BEGUN), status(401), OVER], { auth: { ticket } })
  await reached(stream, "ended")
  expect(server.asked.map(({ url }) => url.searchParams.get("ticket"))).toEqual(["ticket-1", "ticket-2", "ticket-3"])
  expect(paths[0]).toEqual(["/api/v2/dags/chat/dagRuns/r1/stream"])
})

test("who gives tokens may fail for a while", async () => {
  let asked = 0
  const bearer = async () => {
    if (asked++ === 0) throw new Error("offline")
    return "token"
  }
  const { stream } = await watching([OVER], { auth: { bearer } })
  await reached(stream, "ended")
})

test("a stream goes on from a bookmark, as if it had never stopped", async () => {
  const first = await watching([open(events([at("c1", snapshot()), at("c2", chunk(1, 0, "a")), chunk(2, 1, "b")]))])
  await reached(first.stream, "live")
  expect(first.stream.view.output.answer?.text).toBe("ab")
  const bookmark = JSON.parse(JSON.stringify(first.stream.bookmark))
  const server = await serve(open(events([resumed("c2"), chunk(2, 1, "b"), at("c3", chunk(2, 2, "c"))])))
  servers.push(server)
  const stream = bench({ baseUrl: server.url }).client.watch("chat", "r1", { bookmark })
  streams.push(stream)
  await reached(stream, "live")
  expect(stream.view.output.answer?.text).toBe("abc")
  expect(cursors(server)).toEqual(["c2"])
})

test("a stream that is closed asks for nothing more, and says so", async () => {
  const controller = new AbortController()
  const server = await serve(open(BEGUN))
  servers.push(server)
  const { client, clock } = bench({ baseUrl: server.url })
  const stream = client.watch("chat", "r1", { signal: controller.signal })
  await reached(stream, "live")
  controller.abort()
  expect(stream.state).toBe("closed")
  await expect(stream.result).rejects.toMatchObject({ code: "closed" })
  clock.elapse(1_000_000)
  expect(server.asked.length).toBe(1)
})

test("frames are iterated to the end; a loop that is left closes the stream, unless others listen", async () => {
  const text = events([at("c1", snapshot()), task(1, "running"), { type: "ping" }, at("c2", result()), at("c3", end())])
  const { stream } = await watching([whole(text)])
  const types: string[] = []
  for await (const frame of stream) types.push(frame.type)
  expect(types).toEqual(["snapshot", "task", "result", "end"])
  expect(await stream.result).toMatchObject({ kind: "result", value: 42 })

  const left = await watching([open(text.slice(0, text.indexOf("event: result")))])
  for await (const frame of left.stream) if (frame.type === "task") break
  expect(left.stream.state).toBe("closed")

  const shared = await watching([open(BEGUN)])
  shared.stream.subscribe(() => {})
  for await (const _ of shared.stream) break
  expect(shared.stream.state).toBe("live")
})

test("a loop over a stream that fails throws", async () => {
  const { stream } = await watching([status(404)])
  await expect(async () => {
    for await (const _ of stream) expect.fail("there is nothing to be told")
  }).rejects.toMatchObject({ code: "refused", status: 404 })
})
