import type { Client } from "airflow-stream-client"
import { act } from "react"
import { afterEach, expect, test } from "vitest"
import { at, chunk, end, failure, progress, reset, result, snapshot, task } from "../../client/test/support/frames.js"
import { type Answer, events, open, serve, status, type TestServer, whole } from "../../client/test/support/server.js"
import { bench, eventually } from "../../client/test/support/streaming.js"
import { type DagRunChat, useDagRun, useDagRunChat, useDagRunResult } from "../src/index.js"
import { show } from "./support/dom.js"

const servers: TestServer[] = []
afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close()))
})

async function asking(...answers: Answer[]): Promise<{ client: Client; server: TestServer }> {
  const server = await serve(...answers)
  servers.push(server)
  return { client: bench({ baseUrl: server.url }).client, server }
}

function Run({ client, runId }: { client: Client; runId: string | null }) {
  const { state, view, error, again } = useDagRun(client, "chat", runId, { until: "run" })
  const text = `${state} ${view.run?.state} ${view.output.answer?.text} ${view.outcome.kind} ${error?.code}`
  return (
    <button type="button" onClick={again}>
      {text}
    </button>
  )
}

test("useDagRun shows a run as it goes, on one connection", async () => {
  let response: Parameters<Answer>[0] | undefined
  const { client, server } = await asking((one) => {
    response = one
    one.writeHead(200, { "Content-Type": "text/event-stream" }).write(events([at("c1", snapshot())]))
  })
  const shown = await show(<Run client={client} runId="r1" />)
  await shown.until("live running undefined pending")
  response?.write(events([task(1, "running"), chunk(2, 0, "Air "), at("c2", chunk(2, 1, "scatters"))]))
  await shown.until("Air scatters")
  response?.write(events([at("c3", result())]))
  await shown.until("result")
  expect(server.asked.length).toBe(1)
  expect(server.asked[0]?.url.search).toBe("?until=run")
  await shown.unmount()
  await eventually(() => response?.destroyed === true, "the connection is closed")
})

test("useDagRun follows another run when it is given one, and none when there is none", async () => {
  const { client, server } = await asking(open(events([at("c1", snapshot())])))
  const shown = await show(<Run client={client} runId={null} />)
  expect(shown.text()).toContain("connecting")
  expect(server.asked.length).toBe(0)
  await shown.render(<Run client={client} runId="r1" />)
  await shown.until("live")
  await shown.render(<Run client={client} runId="r2" />)
  await eventually(() => server.asked.length === 2)
  expect(server.asked[1]?.url.pathname).toContain("/dagRuns/r2/stream")
  await shown.unmount()
})

test("useDagRun goes on where it was, after a sign-in", async () => {
  const { client, server } = await asking(
    whole(events([at("c1", snapshot()), at("c2", chunk(1, 0, "Air "))])),
    status(401, {}, '{"detail": "Sign in"}'),
    open(events([{ type: "resumed", since: "c2" }, at("c3", chunk(2, 1, "scatters"))])),
  )
  const shown = await show(<Run client={client} runId="r1" />)
  await shown.until("failed running Air  pending unauthenticated")
  await act(async () => shown.click())
  await shown.until("live running Air scatters")
  expect(server.asked[2]?.url.searchParams.get("cursor")).toBe("c2")
  await shown.unmount()
})

let renderings = 0

function Answered({ client }: { client: Client }) {
  const { outcome, error } = useDagRunResult(client, "chat", "r1")
  renderings++
  return outcome.kind === "result" ? `It is ${outcome.value}` : `Wait ${error?.message ?? ""}`
}

test("useDagRunResult renders when the answer comes, and not before", async () => {
  let response: Parameters<Answer>[0] | undefined
  const { client } = await asking((one) => {
    response = one
    one.writeHead(200, { "Content-Type": "text/event-stream" }).write(events([at("c1", snapshot())]))
  })
  const shown = await show(<Answered client={client} />)
  await eventually(() => response !== undefined)
  const before = renderings
  response?.write(events([task(1, "running"), at("c2", task(2, "success"))]))
  response?.end(events([at("c3", result()), at("c4", end())]))
  await shown.until("It is 42")
  // Strict mode renders everything twice.
  expect(renderings - before).toBe(2)
  await shown.unmount()
})

test("useDagRunResult says why there will be no answer", async () => {
  const { client } = await asking(status(404, {}, '{"detail": "No such run"}'))
  const shown = await show(<Answered client={client} />)
  await shown.until("No such run")
  await shown.unmount()
})

let chat: DagRunChat

function Chat({ client, storage }: { client: Client; storage?: Storage }) {
  chat = useDagRunChat(client, "chat", { storage })
  const lines = chat.turns.map(
    (turn) => `[${turn.question}] ${turn.status}: ${turn.answer} (${turn.progress?.text ?? turn.problem ?? ""})`,
  )
  return <>{lines.join("\n") || "Ask"}</>
}

const triggered = (text: string): Answer => {
  return (response) => {
    const headers = { "Content-Type": "text/event-stream", "Content-Location": "/api/v2/dags/chat/dagRuns/r1/stream" }
    response.writeHead(200, headers).write(text)
  }
}

test("useDagRunChat asks, shows the answer as it is written, and tells what was said before", async () => {
  const first = events([at("c1", snapshot()), progress(1, 0, 0.5, "searching"), at("c2", chunk(2, 1, "Because "))])
  const rest = events([at("c3", chunk(3, 2, "of air")), at("c4", result("Because of air")), at("c5", end())])
  let response: Parameters<Answer>[0] | undefined
  const { client, server } = await asking(
    (one, asked) => {
      response = one
      triggered(first)(one, asked)
    },
    triggered(first + rest),
  )
  const shown = await show(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await shown.until("[Why?] answering: Because  (searching)")
  expect(chat.busy).toBe(true)
  response?.end(rest)
  await shown.until("[Why?] answered: Because of air ()")
  await act(async () => chat.send("Really?"))
  await shown.until("[Really?] answered")
  const [one, two] = server.asked.map(({ body }) => JSON.parse(body).conf)
  expect(one).toEqual({ message: "Why?", history: [] })
  expect(two.history).toEqual([
    { role: "user", content: "Why?" },
    { role: "assistant", content: "Because of air" },
  ])
  await shown.unmount()
})

test("useDagRunChat survives a reload in the middle of an answer", async () => {
  const kept = new Map<string, string>()
  const storage = {
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, text: string) => void kept.set(key, text),
  } as Storage
  const half = events([at("c1", snapshot()), at("c2", chunk(1, 0, "Because "))])
  const { client, server } = await asking(
    triggered(half),
    open(half + events([at("c3", chunk(2, 1, "of air")), at("c4", result("Because of air")), at("c5", end())])),
  )
  const shown = await show(<Chat client={client} storage={storage} />)
  await act(async () => chat.send("Why?"))
  await shown.until("answering: Because")
  await shown.unmount()
  const again = await show(<Chat client={client} storage={storage} />)
  await again.until("[Why?] answered: Because of air")
  expect(server.asked.map(({ request }) => request.method)).toEqual(["POST", "GET"])
  await again.unmount()
})

test("useDagRunChat takes back what a try that failed had said", async () => {
  const text = events([
    at("c1", snapshot()),
    at("c2", chunk(1, 0, "Half an ")),
    reset("retried"),
    at("c3", snapshot()),
    at("c4", chunk(2, 0, "A whole one", { try_number: 2 })),
  ])
  const { client } = await asking(triggered(text))
  const shown = await show(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await shown.until("answering: A whole one ()")
  await shown.unmount()
})

test("useDagRunChat says what went wrong, and asks again", async () => {
  const { client, server } = await asking(
    triggered(events([at("c1", snapshot()), at("c2", failure({ try_number: 2 })), at("c3", end("failure"))])),
    triggered(events([at("c1", snapshot()), at("c2", result({ text: "Now" })), at("c3", end())])),
  )
  const shown = await show(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await shown.until("failed:  (task failed in answer, try 2)")
  await act(async () => chat.retry())
  await shown.until("answered: Now")
  const keys = server.asked.map(({ request }) => request.headers["idempotency-key"])
  expect(new Set(keys).size).toBe(2)
  await shown.unmount()
})

test("useDagRunChat goes on with the same run after a sign-in", async () => {
  const half = events([at("c1", snapshot()), at("c2", chunk(1, 0, "Because "))])
  const { client, server } = await asking(
    (response, asked) => {
      triggered(half)(response, asked)
      response.end()
    },
    status(401, {}, '{"detail": "Sign in"}'),
    open(half + events([at("c3", result("Because of air")), at("c4", end())])),
  )
  const shown = await show(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await shown.until("failed: Because  (Sign in)")
  await act(async () => chat.retry())
  await shown.until("answered: Because of air")
  expect(server.asked.map(({ request }) => request.method)).toEqual(["POST", "GET", "GET"])
  await shown.unmount()
})

test("useDagRunChat stops a run", async () => {
  const { client, server } = await asking(
    triggered(events([at("c1", snapshot()), at("c2", chunk(1, 0, "Because "))])),
    status(200, { "Content-Type": "application/json" }, '{"state": "failed"}'),
  )
  const shown = await show(<Chat client={client} />)
  await act(async () => chat.send("Why?"))
  await shown.until("answering")
  await act(async () => chat.stop())
  await shown.until("stopped: Because")
  expect(server.asked[1]?.url.pathname).toBe("/api/v2/dags/chat/dagRuns/r1/cancel")
  expect(chat.busy).toBe(false)
  await shown.unmount()
})
