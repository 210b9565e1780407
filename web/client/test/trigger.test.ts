// One call that triggers and streams: whatever breaks, the run is triggered once.

import { afterEach, expect, test } from "vitest"
import { WebSocket } from "ws"
import type { RunOptions, RunStream } from "../src/index.js"
import { at, chunk, end, result, resumed, snapshot } from "./support/frames.js"
import { type Answer, events, serve, serveSockets, status, whole } from "./support/server.js"
import { bench, reached, until } from "./support/streaming.js"

const closing: { close(): unknown }[] = []
afterEach(async () => {
  for (const one of closing.splice(0)) await one.close()
})

const begun = (text: string, location = "/api/v2/dags/chat/dagRuns/r%2F1/stream?until=run"): Answer => {
  return (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Content-Location": location }).end(text)
  }
}

async function running(answers: Answer[], options: RunOptions = {}) {
  const server = await serve(...answers)
  const bed = bench({ baseUrl: `${server.url}/prefix/` })
  const stream: RunStream = bed.client.run("chat", { question: "Why?" }, options)
  closing.push(stream, server)
  return { ...bed, server, stream }
}

const OVER = events([at("c2", result()), at("c3", end())])

test("a run is triggered and watched by one request", async () => {
  const options = { dagRunId: "r/1", result: ["answer"], until: "run", onDisconnect: "cancel", note: "mine" } as const
  const { stream, server } = await running([begun(events([at("c1", snapshot())]) + OVER)], options)
  expect(await stream.started).toEqual({ dagId: "chat", runId: "r/1" })
  await reached(stream, "ended")
  const [{ url, body, request }] = server.asked as [(typeof server.asked)[0]]
  expect(url.pathname).toBe("/prefix/api/v2/dags/chat/dagRuns")
  expect(url.search).toBe("?wait_for_completion=true&result=answer&until=run&on_disconnect=cancel")
  expect(JSON.parse(body)).toEqual({ conf: { question: "Why?" }, dag_run_id: "r/1", note: "mine" })
  expect(request.headers["idempotency-key"]).toMatch(/^[0-9a-f-]{36}$/)
  expect(request.headers.accept).toBe("text/event-stream")
})

test("an answer that is lost is asked for again with the same key", async () => {
  const { stream, server } = await running([
    (response) => response.destroy(),
    status(503, {}, '{"detail": "Draining"}'),
    begun(events([at("c1", snapshot())]) + OVER),
  ])
  await reached(stream, "ended")
  const keys = server.asked.map(({ request }) => request.headers["idempotency-key"])
  expect(keys.length).toBe(3)
  expect(new Set(keys).size).toBe(1)
  expect(new Set(server.asked.map(({ body }) => body)).size).toBe(1)
})

test("a stream that breaks is gone on with by GET, from where it was", async () => {
  const { stream, server } = await running(
    [
      begun(events([at("c1", snapshot()), at("c2", chunk(1, 0, "half "))])),
      whole(events([resumed("c2"), at("c3", chunk(2, 1, "whole"))]) + OVER),
    ],
    { until: "run" },
  )
  await reached(stream, "ended")
  expect(stream.view.output.answer?.text).toBe("half whole")
  const [, { url, request }] = server.asked as [unknown, (typeof server.asked)[0]]
  expect(request.method).toBe("GET")
  expect(url.pathname + url.search).toBe("/prefix/api/v2/dags/chat/dagRuns/r%2F1/stream?until=run&cursor=c2")
})

test("a run whose name no header tells is known by its frames", async () => {
  const { stream, server } = await running([
    whole(events([at("c1", snapshot())])),
    whole(events([resumed("c1")]) + OVER),
  ])
  expect(await stream.started).toEqual({ dagId: "chat", runId: "r1" })
  await reached(stream, "ended")
  expect(server.asked.map(({ request }) => request.method)).toEqual(["POST", "GET"])
})

test("a stream that breaks before its first frame is gone on with by GET, too", async () => {
  const { stream, server } = await running([begun(""), whole(events([at("c1", snapshot())]) + OVER)])
  await reached(stream, "ended")
  expect(server.asked.map(({ request }) => request.method)).toEqual(["POST", "GET"])
})

test("wherever the answer says that the run is, we stay with our server", async () => {
  const elsewhere = "https://evil.example/steal/dagRuns/r1/stream"
  const { stream, server } = await running([begun("", elsewhere), whole(events([at("c1", snapshot())]) + OVER)])
  await reached(stream, "ended")
  expect(server.asked[1]?.url.pathname).toBe("/prefix/api/v2/dags/chat/dagRuns/r1/stream")
})

test("a run that was triggered before something went wrong is watched, not triggered again", async () => {
  const headers = { Location: "/api/v2/dags/chat/dagRuns/r1" }
  const { stream, server } = await running([status(503, headers), whole(events([at("c1", snapshot())]) + OVER)])
  await reached(stream, "ended")
  expect(server.asked.map(({ request }) => request.method)).toEqual(["POST", "GET"])
})

test("what Airflow refuses is told, and not tried again", async () => {
  const { stream, server } = await running([status(409, {}, '{"detail": "There is such a run"}')])
  const { error } = await reached(stream, "failed")
  expect(error).toMatchObject({ code: "refused", status: 409, message: "There is such a run" })
  await expect(stream.started).rejects.toBe(error)
  expect(server.asked.length).toBe(1)
})

test("a run that can't be triggered for a minute is not triggered later", async () => {
  const { stream, clock, server } = await running([status(503, { "Retry-After": "20" })])
  while (stream.state !== "failed") {
    const { error } = await until(stream, (now) => now.error !== null)
    clock.elapse(20_000)
    await until(stream, (now) => now.error !== error, "another attempt")
  }
  expect(stream.current.error).toMatchObject({ code: "lost", status: 503 })
  expect(server.asked.length).toBe(5)
})

test("over WebSockets, the answer to the trigger names the run, and the stream follows", async () => {
  const server = await serveSockets(
    (socket, { op, id, run_id, result: asked }) => {
      if (op !== "subscribe") return
      expect([run_id, asked]).toEqual(["r/1", ["answer"]])
      socket.send(JSON.stringify({ ...snapshot(), cursor: "c1", id }))
    },
    () => {},
    (response, { request, url }) => {
      expect(request.method).toBe("POST")
      expect(url.search).toBe("?wait_for_completion=true&timeout=0")
      response.writeHead(202, { "Content-Location": "/api/v2/dags/chat/dagRuns/r%2F1/result" }).end("{}")
    },
  )
  const { client } = bench({ baseUrl: server.url, transport: "multiplex" }, { WebSocket: WebSocket as never })
  const stream = client.run("chat", {}, { result: ["answer"] })
  closing.push(client, server)
  expect(await stream.started).toEqual({ dagId: "chat", runId: "r/1" })
  await reached(stream, "live")
})

test("a run is cancelled, with another token where the first is refused", async () => {
  const server = await serve(status(401), status(200, {}, '{"state": "failed"}'), status(403, {}, '{"detail": "No"}'))
  closing.push(server)
  const { client } = bench({ baseUrl: server.url, auth: { bearer: (refresh) => (refresh ? "new" : "old") } })
  expect(await client.cancel("chat", "r 1")).toBe("failed")
  const [, { request, url }] = server.asked as [unknown, (typeof server.asked)[0]]
  expect(request.headers.authorization).toBe("Bearer new")
  expect(`${request.method} ${url.pathname}`).toBe("POST /api/v2/dags/chat/dagRuns/r%201/cancel")
  await expect(client.cancel("chat", "r1")).rejects.toMatchObject({ code: "refused", status: 403, message: "No" })
})
