// A connection may break after any byte; what is known in the end is the same, and nothing is told twice.

import { afterAll, expect, test } from "vitest"
import { WebSocket } from "ws"
import type { ClientOptions, Frame, Platform, RunStream } from "../src/index.js"
import { at, chunk, end, result, run, snapshot, task } from "./support/frames.js"
import { after, type Cutter, cutter, events, serve, serveSockets, type TestServer } from "./support/server.js"
import { bench, collected, reached } from "./support/streaming.js"

const STREAM: Frame[] = [
  at("c1", snapshot()),
  task(1, "running"),
  at("c2", chunk(2, 0, "Lüft ")),
  chunk(3, 1, "scatters 🌈 "),
  at("c3", chunk(3, 2, "light.\r\n")),
  run(4, "success"),
  at("c4", result({ text: "weil" }, { seq: 5 })),
  at("c5", end()),
]

const servers: { close(): Promise<void> }[] = []
afterAll(() => Promise.all(servers.map((server) => server.close())))

const keep = <Kept extends { close(): Promise<void> }>(server: Kept): Kept => {
  servers.push(server)
  return server
}

/** Follows the stream with its first connection cut after so many bytes. */
async function follow(cut: Pick<Cutter, "url" | "next">, bytes: number, options: ClientOptions): Promise<RunStream> {
  cut.next = bytes
  const { client } = bench({ baseUrl: cut.url, ...options })
  const stream = client.watch("chat", "r1")
  const frames = collected(stream)
  await reached(stream, "ended")
  const told = frames.filter((frame) => "seq" in frame && frame.type !== "result").map((frame) => JSON.stringify(frame))
  expect(new Set(told).size, `twice, when cut after ${bytes} bytes`).toBe(told.length)
  return stream
}

function expectAll(stream: RunStream, bytes: number): void {
  const { view } = stream
  expect(view.output.answer?.text, `cut after ${bytes} bytes`).toBe("Lüft scatters 🌈 light.\r\n")
  expect(view.output.answer?.blocks.flat(1).length).toBe(3)
  expect(view.tasks.answer?.state).toBe("running")
  expect(view.run?.state).toBe("success")
  expect(view.outcome).toMatchObject({ kind: "result", value: { text: "weil" } })
  expect(view.end?.state).toBe("success")
}

const LINES = [
  ["LF", "\n", ""],
  ["CRLF", "\r\n", ""],
  ["LF after a BOM", "\n", "\uFEFF"],
] as const

for (const [name, lineEnd, prefix] of LINES) {
  const body = (url: URL) => prefix + events(after(STREAM, url.searchParams.get("cursor")), lineEnd)
  const headers = { "Content-Type": "text/event-stream; charset=utf-8" }

  test(`SSE with ${name}, cut after any byte`, { timeout: 30_000 }, async () => {
    const length = Buffer.byteLength(body(new URL("http://test/")))
    for (let bytes = 0; bytes <= length; bytes++) {
      let connections = 0
      const fetch = async (address: unknown) => {
        const text = new TextEncoder().encode(body(new URL(String(address))))
        return new Response(broken(connections++ === 0 ? text.subarray(0, bytes) : text), { headers })
      }
      expectAll(await follow({ url: "http://test", next: 0 }, 0, { platform: { fetch: fetch as never } }), bytes)
    }
  })

  test(`SSE with ${name}, cut anywhere on a real connection`, { timeout: 30_000 }, async () => {
    const server = keep(await serve((response, { url }) => response.writeHead(200, headers).end(body(url))))
    const cut = keep(await cutter(server.url))
    const length = Buffer.byteLength(body(new URL("http://test/"))) + 300
    for (let bytes = 0; bytes < length; bytes += 41) expectAll(await follow(cut, bytes, {}), bytes)
    expect(server.asked.some(({ url }) => url.searchParams.get("cursor") === "c3")).toBe(true)
  })
}

/** A body that breaks after some bytes, which come in two parts. */
function broken(bytes: Uint8Array): ReadableStream<Uint8Array> {
  const half = Math.floor(bytes.length / 2)
  const parts = [bytes.subarray(0, half), bytes.subarray(half)].filter((part) => part.length > 0)
  return new ReadableStream({
    pull: (controller) => {
      const part = parts.shift()
      if (part === undefined) controller.error(new TypeError("terminated"))
      else controller.enqueue(part)
    },
  })
}

const sockets: Partial<Platform> = { WebSocket: WebSocket as never }

/** Serves the stream on WebSockets, alone and among many, and over SSE. */
async function both(): Promise<TestServer> {
  return keep(
    await serveSockets(
      (socket, { op, id, cursor }) => {
        if (op !== "subscribe") return
        socket.send(JSON.stringify({ type: "ack", op, id }))
        for (const frame of after(STREAM, (cursor as string | undefined) ?? null)) {
          socket.send(JSON.stringify({ ...frame, id }))
        }
      },
      (socket, url) => {
        if (url.pathname === "/api/v2/stream") return
        for (const frame of after(STREAM, url.searchParams.get("cursor"))) socket.send(JSON.stringify(frame))
        socket.close(1000)
      },
      (response, { url }) => {
        response.writeHead(200, { "Content-Type": "text/event-stream" })
        response.end(events(after(STREAM, url.searchParams.get("cursor"))))
      },
    ),
  )
}

for (const transport of ["websocket", "multiplex"] as const) {
  test(`${transport}, cut anywhere on a real connection`, { timeout: 30_000 }, async () => {
    const cut = keep(await cutter((await both()).url))
    for (let bytes = 0; bytes < 1700; bytes += 29) {
      expectAll(await follow(cut, bytes, { transport, platform: sockets }), bytes)
    }
  })
}

test("a server that breaks off after every frame is followed to the end", async () => {
  const server = keep(
    await serve((response, { url }) => {
      const [first, second, third] = after(STREAM, url.searchParams.get("cursor"))
      response.writeHead(200, { "Content-Type": "text/event-stream" })
      response.end(events([first, second, third].filter((frame) => frame !== undefined)))
    }),
  )
  const { client } = bench({ baseUrl: server.url })
  const stream = client.watch("chat", "r1")
  await reached(stream, "ended")
  expectAll(stream, 0)
  expect(server.asked.length).toBeGreaterThan(3)
})

test("two frames in a packet are taken in together", async () => {
  const server = keep(
    await serve((response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" })
      response.write(events([at("c1", snapshot()), task(1, "running"), at("c2", task(2, "success"))]))
    }),
  )
  const { client } = bench({ baseUrl: server.url })
  const stream = client.watch("chat", "r1")
  const batches: number[] = []
  stream.subscribe((_, frames) => batches.push(frames.length))
  await reached(stream, "live")
  expect(batches).toEqual([3])
  stream.close()
})
