// A connection may break after any byte. The final view is the same, and no frame is delivered twice.

import { afterAll, expect, test } from "vitest"
import { WebSocket } from "ws"
import type { ClientOptions, Frame, Platform, RunStream } from "../src/index.js"
import { type CuttingProxy, startCuttingProxy } from "./support/cutting_proxy.js"
import { chunk, end, result, run, snapshot, task, withCursor } from "./support/frames.js"
import { collectFrames, createTestClient, waitForState } from "./support/test_client.js"
import { framesAfter, serve, serveSockets, type TestServer, toEventStream } from "./support/test_server.js"

const FRAMES: Frame[] = [
  withCursor("c1", snapshot()),
  task(1, "running"),
  withCursor("c2", chunk(2, 0, "Lüft ")),
  chunk(3, 1, "scatters 🌈 "),
  withCursor("c3", chunk(3, 2, "light.\r\n")),
  run(4, "success"),
  withCursor("c4", result({ text: "weil" }, { seq: 5 })),
  withCursor("c5", end()),
]

const servers: { close(): Promise<void> }[] = []
afterAll(() => Promise.all(servers.map((server) => server.close())))

const closeAfterTests = <Kept extends { close(): Promise<void> }>(server: Kept): Kept => {
  servers.push(server)
  return server
}

/** Follows the stream; its first connection is cut after `bytes`. */
async function follow(
  cut: Pick<CuttingProxy, "url" | "bytesBeforeCut">,
  bytes: number,
  options: ClientOptions,
): Promise<RunStream> {
  cut.bytesBeforeCut = bytes
  const { client } = createTestClient({ baseUrl: cut.url, ...options })
  const stream = client.watch("chat", "r1")
  const frames = collectFrames(stream)
  await waitForState(stream, "ended")
  const texts = frames
    .filter((frame) => "seq" in frame && frame.type !== "result")
    .map((frame) => JSON.stringify(frame))
  expect(new Set(texts).size, `duplicates, when cut after ${bytes} bytes`).toBe(texts.length)
  return stream
}

function expectComplete(stream: RunStream, bytes: number): void {
  const { view } = stream
  expect(view.output.answer?.text, `cut after ${bytes} bytes`).toBe("Lüft scatters 🌈 light.\r\n")
  expect(view.output.answer?.blocks.flat(1).length).toBe(3)
  expect(view.tasks.answer?.state).toBe("running")
  expect(view.run?.state).toBe("success")
  expect(view.outcome).toMatchObject({ kind: "result", value: { text: "weil" } })
  expect(view.end?.state).toBe("success")
}

const LINE_ENDS = [
  ["LF", "\n", ""],
  ["CRLF", "\r\n", ""],
  ["LF after a BOM", "\n", "\uFEFF"],
] as const

for (const [name, lineEnd, prefix] of LINE_ENDS) {
  const body = (url: URL) => prefix + toEventStream(framesAfter(FRAMES, url.searchParams.get("cursor")), lineEnd)
  const headers = { "Content-Type": "text/event-stream; charset=utf-8" }

  test(`SSE with ${name}, cut after any byte`, { timeout: 30_000 }, async () => {
    const length = Buffer.byteLength(body(new URL("http://test/")))
    for (let bytes = 0; bytes <= length; bytes++) {
      let connections = 0
      const fetch = async (address: unknown) => {
        const text = new TextEncoder().encode(body(new URL(String(address))))
        return new Response(createBrokenBody(connections++ === 0 ? text.subarray(0, bytes) : text), { headers })
      }
      expectComplete(
        await follow({ url: "http://test", bytesBeforeCut: 0 }, 0, { platform: { fetch: fetch as never } }),
        bytes,
      )
    }
  })

  test(`SSE with ${name}, cut anywhere on a real connection`, { timeout: 30_000 }, async () => {
    const server = closeAfterTests(await serve((response, { url }) => response.writeHead(200, headers).end(body(url))))
    const cut = closeAfterTests(await startCuttingProxy(server.url))
    const length = Buffer.byteLength(body(new URL("http://test/"))) + 300
    for (let bytes = 0; bytes < length; bytes += 41) expectComplete(await follow(cut, bytes, {}), bytes)
    expect(server.requests.some(({ url }) => url.searchParams.get("cursor") === "c3")).toBe(true)
  })
}

/** A body of two parts, after which it breaks. */
function createBrokenBody(bytes: Uint8Array): ReadableStream<Uint8Array> {
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

/** Serves the stream over WebSockets, single and multiplexed, and over SSE. */
async function serveAllTransports(): Promise<TestServer> {
  return closeAfterTests(
    await serveSockets(
      (socket, { op, id, cursor }) => {
        if (op !== "subscribe") return
        socket.send(JSON.stringify({ type: "ack", op, id }))
        for (const frame of framesAfter(FRAMES, (cursor as string | undefined) ?? null)) {
          socket.send(JSON.stringify({ ...frame, id }))
        }
      },
      (socket, url) => {
        if (url.pathname === "/api/v2/stream") return
        for (const frame of framesAfter(FRAMES, url.searchParams.get("cursor"))) socket.send(JSON.stringify(frame))
        socket.close(1000)
      },
      (response, { url }) => {
        response.writeHead(200, { "Content-Type": "text/event-stream" })
        response.end(toEventStream(framesAfter(FRAMES, url.searchParams.get("cursor"))))
      },
    ),
  )
}

for (const transport of ["websocket", "multiplex"] as const) {
  test(`${transport}, cut anywhere on a real connection`, { timeout: 30_000 }, async () => {
    const cut = closeAfterTests(await startCuttingProxy((await serveAllTransports()).url))
    for (let bytes = 0; bytes < 1700; bytes += 29) {
      expectComplete(await follow(cut, bytes, { transport, platform: sockets }), bytes)
    }
  })
}

test("a stream is complete although each connection ends after a few frames", async () => {
  const server = closeAfterTests(
    await serve((response, { url }) => {
      const [first, second, third] = framesAfter(FRAMES, url.searchParams.get("cursor"))
      response.writeHead(200, { "Content-Type": "text/event-stream" })
      response.end(toEventStream([first, second, third].filter((frame) => frame !== undefined)))
    }),
  )
  const { client } = createTestClient({ baseUrl: server.url })
  const stream = client.watch("chat", "r1")
  await waitForState(stream, "ended")
  expectComplete(stream, 0)
  expect(server.requests.length).toBeGreaterThan(3)
})

test("the frames of one packet are delivered together", async () => {
  const server = closeAfterTests(
    await serve((response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" })
      response.write(
        toEventStream([withCursor("c1", snapshot()), task(1, "running"), withCursor("c2", task(2, "success"))]),
      )
    }),
  )
  const { client } = createTestClient({ baseUrl: server.url })
  const stream = client.watch("chat", "r1")
  const batches: number[] = []
  stream.subscribe((_, frames) => batches.push(frames.length))
  await waitForState(stream, "live")
  expect(batches).toEqual([3])
  stream.close()
})
