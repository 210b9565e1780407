// Triggering and streaming by one call. Whatever fails, the run is triggered once.

import { afterEach, expect, test } from "vitest"
import { WebSocket } from "ws"
import type { RunOptions, RunStream } from "../src/index.js"
import { chunk, end, result, resumed, snapshot, withCursor } from "./support/frames.js"
import { createTestClient, waitForState, waitUntil } from "./support/test_client.js"
import {
  type Responder,
  respondWithStatus,
  respondWithStream,
  serve,
  serveSockets,
  toEventStream,
} from "./support/test_server.js"

const closing: { close(): unknown }[] = []
afterEach(async () => {
  for (const one of closing.splice(0)) await one.close()
})

const respondToTrigger = (text: string, location = "/api/v2/dags/chat/dagRuns/r%2F1/stream?until=run"): Responder => {
  return (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Content-Location": location }).end(text)
  }
}

async function triggerRun(responders: Responder[], options: RunOptions = {}) {
  const server = await serve(...responders)
  const testClient = createTestClient({ baseUrl: `${server.url}/prefix/` })
  const stream: RunStream = testClient.client.run("chat", { question: "Why?" }, options)
  closing.push(stream, server)
  return { ...testClient, server, stream }
}

const REST = toEventStream([withCursor("c2", result()), withCursor("c3", end())])

test("one request triggers and streams a run", async () => {
  const options = { dagRunId: "r/1", result: ["answer"], until: "run", onDisconnect: "cancel", note: "mine" } as const
  const { stream, server } = await triggerRun(
    [respondToTrigger(toEventStream([withCursor("c1", snapshot())]) + REST)],
    options,
  )
  expect(await stream.started).toEqual({ dagId: "chat", runId: "r/1" })
  await waitForState(stream, "ended")
  const [{ url, body, request }] = server.requests as [(typeof server.requests)[0]]
  expect(url.pathname).toBe("/prefix/api/v2/dags/chat/dagRuns")
  expect(url.search).toBe("?wait_for_completion=true&result=answer&until=run&on_disconnect=cancel")
  expect(JSON.parse(body)).toEqual({ conf: { question: "Why?" }, dag_run_id: "r/1", note: "mine" })
  expect(request.headers["idempotency-key"]).toMatch(/^[0-9a-f]{32}$/)
  expect(request.headers.accept).toBe("text/event-stream")
})

test("after a lost response, the trigger is repeated with the same key", async () => {
  const { stream, server } = await triggerRun([
    (response) => response.destroy(),
    respondWithStatus(503, {}, '{"detail": "Draining"}'),
    respondToTrigger(toEventStream([withCursor("c1", snapshot())]) + REST),
  ])
  await waitForState(stream, "ended")
  const keys = server.requests.map(({ request }) => request.headers["idempotency-key"])
  expect(keys.length).toBe(3)
  expect(new Set(keys).size).toBe(1)
  expect(new Set(server.requests.map(({ body }) => body)).size).toBe(1)
})

test("after a lost connection, the stream resumes by GET", async () => {
  const { stream, server } = await triggerRun(
    [
      respondToTrigger(toEventStream([withCursor("c1", snapshot()), withCursor("c2", chunk(1, 0, "half "))])),
      respondWithStream(toEventStream([resumed("c2"), withCursor("c3", chunk(2, 1, "whole"))]) + REST),
    ],
    { until: "run" },
  )
  await waitForState(stream, "ended")
  expect(stream.view.output.answer?.text).toBe("half whole")
  const [, { url, request }] = server.requests as [unknown, (typeof server.requests)[0]]
  expect(request.method).toBe("GET")
  expect(url.pathname + url.search).toBe("/prefix/api/v2/dags/chat/dagRuns/r%2F1/stream?until=run&cursor=c2")
})

test("without headers, the run id is taken from the frames", async () => {
  const { stream, server } = await triggerRun([
    respondWithStream(toEventStream([withCursor("c1", snapshot())])),
    respondWithStream(toEventStream([resumed("c1")]) + REST),
  ])
  expect(await stream.started).toEqual({ dagId: "chat", runId: "r1" })
  await waitForState(stream, "ended")
  expect(server.requests.map(({ request }) => request.method)).toEqual(["POST", "GET"])
})

test("a stream that is lost before its first frame continues by GET", async () => {
  const { stream, server } = await triggerRun([
    respondToTrigger(""),
    respondWithStream(toEventStream([withCursor("c1", snapshot())]) + REST),
  ])
  await waitForState(stream, "ended")
  expect(server.requests.map(({ request }) => request.method)).toEqual(["POST", "GET"])
})

test("the host in Content-Location is ignored", async () => {
  const elsewhere = "https://evil.example/steal/dagRuns/r1/stream"
  const { stream, server } = await triggerRun([
    respondToTrigger("", elsewhere),
    respondWithStream(toEventStream([withCursor("c1", snapshot())]) + REST),
  ])
  await waitForState(stream, "ended")
  expect(server.requests[1]?.url.pathname).toBe("/prefix/api/v2/dags/chat/dagRuns/r1/stream")
})

test("a run that was triggered before an error is streamed, not triggered again", async () => {
  const headers = { Location: "/api/v2/dags/chat/dagRuns/r1" }
  const { stream, server } = await triggerRun([
    respondWithStatus(503, headers),
    respondWithStream(toEventStream([withCursor("c1", snapshot())]) + REST),
  ])
  await waitForState(stream, "ended")
  expect(server.requests.map(({ request }) => request.method)).toEqual(["POST", "GET"])
})

test("a refusal by Airflow is reported, and not retried", async () => {
  const { stream, server } = await triggerRun([respondWithStatus(409, {}, '{"detail": "The run exists"}')])
  const { error } = await waitForState(stream, "failed")
  expect(error).toMatchObject({ code: "refused", status: 409, message: "The run exists" })
  await expect(stream.started).rejects.toBe(error)
  expect(server.requests.length).toBe(1)
})

test("the trigger is not retried after a minute", async () => {
  const { stream, clock, server } = await triggerRun([respondWithStatus(503, { "Retry-After": "20" })])
  while (stream.state !== "failed") {
    const { error } = await waitUntil(stream, (status) => status.error !== null)
    clock.advance(20_000)
    await waitUntil(stream, (status) => status.error !== error, "another attempt")
  }
  expect(stream.current.error).toMatchObject({ code: "lost", status: 503 })
  expect(server.requests.length).toBe(5)
})

test("over WebSockets, the response to the trigger has the run id, and the stream follows", async () => {
  const server = await serveSockets(
    (socket, { op, id, run_id, result: resultTasks }) => {
      if (op !== "subscribe") return
      expect([run_id, resultTasks]).toEqual(["r/1", ["answer"]])
      socket.send(JSON.stringify({ ...snapshot(), cursor: "c1", id }))
    },
    () => {},
    (response, { request, url }) => {
      expect(request.method).toBe("POST")
      expect(url.search).toBe("?wait_for_completion=true&timeout=0")
      response.writeHead(202, { "Content-Location": "/api/v2/dags/chat/dagRuns/r%2F1/result" }).end("{}")
    },
  )
  const { client } = createTestClient(
    { baseUrl: server.url, transport: "multiplex" },
    { WebSocket: WebSocket as never },
  )
  const stream = client.run("chat", {}, { result: ["answer"] })
  closing.push(client, server)
  expect(await stream.started).toEqual({ dagId: "chat", runId: "r/1" })
  await waitForState(stream, "live")
})

test("cancel retries with a new token after a 401", async () => {
  const server = await serve(
    respondWithStatus(401),
    respondWithStatus(200, {}, '{"state": "failed"}'),
    respondWithStatus(403, {}, '{"detail": "No"}'),
  )
  closing.push(server)
  const { client } = createTestClient({ baseUrl: server.url, auth: { bearer: (refresh) => (refresh ? "new" : "old") } })
  expect(await client.cancel("chat", "r 1")).toBe("failed")
  const [, { request, url }] = server.requests as [unknown, (typeof server.requests)[0]]
  expect(request.headers.authorization).toBe("Bearer new")
  expect(`${request.method} ${url.pathname}`).toBe("POST /api/v2/dags/chat/dagRuns/r%201/cancel")
  await expect(client.cancel("chat", "r1")).rejects.toMatchObject({ code: "refused", status: 403, message: "No" })
})
