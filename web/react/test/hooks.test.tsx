import type { Client } from "airflow-stream-client"
import { act } from "react"
import { afterEach, expect, test } from "vitest"
import {
  chunk,
  end,
  failure,
  progress,
  reset,
  result,
  snapshot,
  task,
  withCursor,
} from "../../client/test/support/frames.js"
import { createTestClient, eventually } from "../../client/test/support/test_client.js"
import {
  type Responder,
  respondAndStayOpen,
  respondWithStatus,
  respondWithStream,
  serve,
  type TestServer,
  toEventStream,
} from "../../client/test/support/test_server.js"
import { type DagRunChat, useDagRun, useDagRunChat, useDagRunResult } from "../src/index.js"
import { renderStrict } from "./support/dom.js"

const servers: TestServer[] = []
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()))
})

async function createClientFor(...responders: Responder[]): Promise<{ client: Client; server: TestServer }> {
  const server = await serve(...responders)
  servers.push(server)
  return { client: createTestClient({ baseUrl: server.url }).client, server }
}

function Run({ client, runId }: { client: Client; runId: string | null }) {
  const { state, view, error, resume, again } = useDagRun(client, "chat", runId, { until: "run" })
  expect(again, "deprecated alias").toBe(resume)
  const text = `${state} ${view.run?.state} ${view.output.answer?.text} ${view.outcome.kind} ${error?.code}`
  return (
    <button type="button" onClick={resume}>
      {text}
    </button>
  )
}

test("useDagRun renders a live run on one connection", async () => {
  let response: Parameters<Responder>[0] | undefined
  const { client, server } = await createClientFor((one) => {
    response = one
    one.writeHead(200, { "Content-Type": "text/event-stream" }).write(toEventStream([withCursor("c1", snapshot())]))
  })
  const page = await renderStrict(<Run client={client} runId="r1" />)
  await page.until("live running undefined pending")
  response?.write(toEventStream([task(1, "running"), chunk(2, 0, "Air "), withCursor("c2", chunk(2, 1, "scatters"))]))
  await page.until("Air scatters")
  response?.write(toEventStream([withCursor("c3", result())]))
  await page.until("result")
  expect(server.requests.length).toBe(1)
  expect(server.requests[0]?.url.search).toBe("?until=run")
  await page.unmount()
  await eventually(() => response?.destroyed === true, "the connection is closed")
})

test("useDagRun switches to another run, and opens no stream without a run", async () => {
  const { client, server } = await createClientFor(respondAndStayOpen(toEventStream([withCursor("c1", snapshot())])))
  const page = await renderStrict(<Run client={client} runId={null} />)
  expect(page.text()).toContain("connecting")
  expect(server.requests.length).toBe(0)
  await page.render(<Run client={client} runId="r1" />)
  await page.until("live")
  await page.render(<Run client={client} runId="r2" />)
  await eventually(() => server.requests.length === 2)
  expect(server.requests[1]?.url.pathname).toContain("/dagRuns/r2/stream")
  await page.unmount()
})

test("useDagRun resumes after a sign-in", async () => {
  const { client, server } = await createClientFor(
    respondWithStream(toEventStream([withCursor("c1", snapshot()), withCursor("c2", chunk(1, 0, "Air "))])),
    respondWithStatus(401, {}, '{"detail": "Sign in"}'),
    respondAndStayOpen(toEventStream([{ type: "resumed", since: "c2" }, withCursor("c3", chunk(2, 1, "scatters"))])),
  )
  const page = await renderStrict(<Run client={client} runId="r1" />)
  await page.until("failed running Air  pending unauthenticated")
  await act(async () => page.click())
  await page.until("live running Air scatters")
  expect(server.requests[2]?.url.searchParams.get("cursor")).toBe("c2")
  await page.unmount()
})

let renderings = 0

function ResultText({ client }: { client: Client }) {
  const { outcome, error } = useDagRunResult(client, "chat", "r1")
  renderings++
  return outcome.kind === "result" ? `It is ${outcome.value}` : `Wait ${error?.message ?? ""}`
}

test("useDagRunResult renders when the outcome arrives, and not before", async () => {
  let response: Parameters<Responder>[0] | undefined
  const { client } = await createClientFor((one) => {
    response = one
    one.writeHead(200, { "Content-Type": "text/event-stream" }).write(toEventStream([withCursor("c1", snapshot())]))
  })
  const page = await renderStrict(<ResultText client={client} />)
  await eventually(() => response !== undefined)
  const before = renderings
  response?.write(toEventStream([task(1, "running"), withCursor("c2", task(2, "success"))]))
  response?.end(toEventStream([withCursor("c3", result()), withCursor("c4", end())]))
  await page.until("It is 42")
  // Strict mode renders everything twice.
  expect(renderings - before).toBe(2)
  await page.unmount()
})

test("useDagRunResult returns the error of the stream", async () => {
  const { client } = await createClientFor(respondWithStatus(404, {}, '{"detail": "No such run"}'))
  const page = await renderStrict(<ResultText client={client} />)
  await page.until("No such run")
  await page.unmount()
})

let chat: DagRunChat

function Chat({ client, storage }: { client: Client; storage?: Storage }) {
  chat = useDagRunChat(client, "chat", { storage })
  const lines = chat.turns.map(
    (turn) => `[${turn.question}] ${turn.status}: ${turn.answer} (${turn.progress?.text ?? turn.problem ?? ""})`,
  )
  return <>{lines.join("\n") || "Ask"}</>
}

const respondToTrigger = (text: string): Responder => {
  return (response) => {
    const headers = { "Content-Type": "text/event-stream", "Content-Location": "/api/v2/dags/chat/dagRuns/r1/stream" }
    response.writeHead(200, headers).write(text)
  }
}

test("useDagRunChat sends questions with the history, and renders answers as they arrive", async () => {
  const first = toEventStream([
    withCursor("c1", snapshot()),
    progress(1, 0, 0.5, "searching"),
    withCursor("c2", chunk(2, 1, "Because ")),
  ])
  const rest = toEventStream([
    withCursor("c3", chunk(3, 2, "of air")),
    withCursor("c4", result("Because of air")),
    withCursor("c5", end()),
  ])
  let response: Parameters<Responder>[0] | undefined
  const { client, server } = await createClientFor(
    (one, request) => {
      response = one
      respondToTrigger(first)(one, request)
    },
    respondToTrigger(first + rest),
  )
  const page = await renderStrict(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await page.until("[Why?] answering: Because  (searching)")
  expect(chat.busy).toBe(true)
  response?.end(rest)
  await page.until("[Why?] answered: Because of air ()")
  await act(async () => chat.send("Really?"))
  await page.until("[Really?] answered")
  const [one, two] = server.requests.map(({ body }) => JSON.parse(body).conf)
  expect(one).toEqual({ message: "Why?", history: [] })
  expect(two.history).toEqual([
    { role: "user", content: "Why?" },
    { role: "assistant", content: "Because of air" },
  ])
  await page.unmount()
})

test.each([
  ["", []],
  [
    "I searched",
    [
      { role: "user", content: "Why?" },
      { role: "assistant", content: "I searched" },
    ],
  ],
])("useDagRunChat sends only texts of a run without a result in the history: '%s'", async (text, history) => {
  const none = { ...end("none"), reason: "no_result_task" }
  const output = text ? [withCursor("c2", chunk(1, 0, text))] : []
  const { client, server } = await createClientFor(
    respondToTrigger(toEventStream([withCursor("c1", snapshot()), ...output, withCursor("c3", none)])),
    respondToTrigger(
      toEventStream([withCursor("c1", snapshot()), withCursor("c2", result("Now")), withCursor("c3", end())]),
    ),
  )
  const page = await renderStrict(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await page.until(`[Why?] answered: ${text} (The run`)
  await act(async () => chat.send("Really?"))
  await page.until("[Really?] answered: Now ()")
  const [, second] = server.requests.map(({ body }) => JSON.parse(body).conf)
  expect(second).toEqual({ message: "Really?", history })
  await page.unmount()
})

test("useDagRunChat survives a reload in the middle of an answer", async () => {
  const kept = new Map<string, string>()
  const storage = {
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, text: string) => void kept.set(key, text),
  } as Storage
  const half = toEventStream([withCursor("c1", snapshot()), withCursor("c2", chunk(1, 0, "Because "))])
  const { client, server } = await createClientFor(
    respondToTrigger(half),
    respondAndStayOpen(
      half +
        toEventStream([
          withCursor("c3", chunk(2, 1, "of air")),
          withCursor("c4", result("Because of air")),
          withCursor("c5", end()),
        ]),
    ),
  )
  const page = await renderStrict(<Chat client={client} storage={storage} />)
  await act(async () => chat.send("Why?"))
  await page.until("answering: Because")
  await page.unmount()
  const reloaded = await renderStrict(<Chat client={client} storage={storage} />)
  await reloaded.until("[Why?] answered: Because of air")
  expect(server.requests.map(({ request }) => request.method)).toEqual(["POST", "GET"])
  await reloaded.unmount()
})

test("useDagRunChat discards the output of a failed try", async () => {
  const text = toEventStream([
    withCursor("c1", snapshot()),
    withCursor("c2", chunk(1, 0, "Half an ")),
    reset("retried"),
    withCursor("c3", snapshot()),
    withCursor("c4", chunk(2, 0, "A whole one", { try_number: 2 })),
  ])
  const { client } = await createClientFor(respondToTrigger(text))
  const page = await renderStrict(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await page.until("answering: A whole one ()")
  await page.unmount()
})

test("useDagRunChat reports a failure, and asks again", async () => {
  const { client, server } = await createClientFor(
    respondToTrigger(
      toEventStream([
        withCursor("c1", snapshot()),
        withCursor("c2", failure({ try_number: 2 })),
        withCursor("c3", end("failure")),
      ]),
    ),
    respondToTrigger(
      toEventStream([withCursor("c1", snapshot()), withCursor("c2", result({ text: "Now" })), withCursor("c3", end())]),
    ),
  )
  const page = await renderStrict(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await page.until("failed:  (task failed in answer, try 2)")
  await act(async () => chat.retry())
  await page.until("answered: Now")
  const keys = server.requests.map(({ request }) => request.headers["idempotency-key"])
  expect(new Set(keys).size).toBe(2)
  await page.unmount()
})

test.each([
  ["no_result_task", null, "The run has ended without a result: the DAG has no result task."],
  ["task_skipped", "answer", "The run has ended without a result: task answer was skipped."],
  ["run_ended", null, "The run has ended before its result tasks had a value."],
])("useDagRunChat reports no failure for a run that ends without a result: %s", async (reason, task_id, problem) => {
  const none = { ...end("none"), reason, ...(task_id && { task_id }) }
  const stream = toEventStream([withCursor("c1", snapshot()), progress(1, 0, 0.5, "searching"), withCursor("c2", none)])
  const answered = toEventStream([
    withCursor("c1", snapshot()),
    withCursor("c2", result("Now")),
    withCursor("c3", end()),
  ])
  const { client } = await createClientFor(respondToTrigger(stream), respondToTrigger(answered))
  const page = await renderStrict(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await page.until(`[Why?] answered:  (${problem})`)
  expect(chat.busy).toBe(false)
  await act(async () => chat.retry())
  await page.until("[Why?] answered: Now ()")
  await page.unmount()
})

test("useDagRunChat continues with the same run after a sign-in", async () => {
  const half = toEventStream([withCursor("c1", snapshot()), withCursor("c2", chunk(1, 0, "Because "))])
  const { client, server } = await createClientFor(
    (response, request) => {
      respondToTrigger(half)(response, request)
      response.end()
    },
    respondWithStatus(401, {}, '{"detail": "Sign in"}'),
    respondAndStayOpen(half + toEventStream([withCursor("c3", result("Because of air")), withCursor("c4", end())])),
  )
  const page = await renderStrict(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await page.until("failed: Because  (Sign in)")
  await act(async () => chat.retry())
  await page.until("answered: Because of air")
  expect(server.requests.map(({ request }) => request.method)).toEqual(["POST", "GET", "GET"])
  await page.unmount()
})

test("useDagRunChat cancels a run", async () => {
  const { client, server } = await createClientFor(
    respondToTrigger(toEventStream([withCursor("c1", snapshot()), withCursor("c2", chunk(1, 0, "Because "))])),
    respondWithStatus(200, { "Content-Type": "application/json" }, '{"state": "failed"}'),
  )
  const page = await renderStrict(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await page.until("answering")
  await act(async () => chat.stop())
  await page.until("stopped: Because")
  expect(server.requests[1]?.url.pathname).toBe("/api/v2/dags/chat/dagRuns/r1/cancel")
  expect(chat.busy).toBe(false)
  await page.unmount()
})
