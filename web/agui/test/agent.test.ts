import type { BaseEvent, Message } from "@ag-ui/client"
import type { Platform } from "airflow-stream-client"
import { describe, expect, test, vi } from "vitest"
import { AirflowAgent, type ConversationStorage } from "../src/index.js"

const RUN = "manual__1"
const PATH = "/api/v2/dags/chat/ag-ui"
const QUESTION: Message = { id: "m1", role: "user", content: "Why?" }
const STARTED = { type: "RUN_STARTED", threadId: "t1", runId: "r1" }
const FINISHED = { type: "RUN_FINISHED", threadId: "t1", runId: "r1", outcome: { type: "success" }, result: "Because" }
const CLOSING = { type: "RUN_ERROR", message: "stops", metadata: { airflow: { reconnect: true } } }

function text(delta: string): object[] {
  return [
    { type: "TEXT_MESSAGE_START", messageId: RUN, role: "assistant" },
    { type: "TEXT_MESSAGE_CONTENT", messageId: RUN, delta },
  ]
}

const TEXT_END = { type: "TEXT_MESSAGE_END", messageId: RUN }

interface Call {
  readonly path: string
  readonly body: { messages: Message[]; resume?: unknown }
  readonly authorization: string | null
}

/** A server that gives one response after the other: events, or a status. The last response stays open. */
function createServer(...responses: (readonly object[] | number)[]) {
  const calls: Call[] = []
  const fetch: typeof globalThis.fetch = async (url, init) => {
    const headers = new Headers(init?.headers)
    const body = init?.body === undefined ? {} : JSON.parse(String(init?.body))
    calls.push({ path: String(url), body, authorization: headers.get("Authorization") })
    if (String(url).endsWith("/stop")) return new Response('{"state":"failed"}')
    const next = responses.shift() ?? 204
    if (typeof next === "number") return new Response(next === 204 ? null : "refused", { status: next })
    const isLast = responses.length === 0
    const stream = new ReadableStream<Uint8Array>({
      start(controller) {
        init?.signal?.addEventListener("abort", () => controller.error(new Error("aborted")))
        for (const event of next) controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(event)}\n\n`))
        if (!isLast) controller.close()
      },
    })
    return new Response(stream, { headers: { "Content-Type": "text/event-stream" } })
  }
  return { calls, platform: { fetch, random: () => 0 } satisfies Partial<Platform> }
}

function createStorage(...messages: Message[]): ConversationStorage {
  const items = new Map<string, string>()
  if (messages.length > 0) items.set("airflow-stream-agui/chat/t1", JSON.stringify(messages))
  return {
    getItem: (key: string) => items.get(key) ?? null,
    setItem: (key: string, value: string) => {
      items.set(key, value)
    },
  }
}

function createAgent(server: { platform: Partial<Platform> }, storage = createStorage(), initial = [QUESTION]) {
  const auth = { bearer: (refresh: boolean) => (refresh ? "new" : "old") }
  const agent = new AirflowAgent({
    dagId: "chat",
    auth,
    platform: server.platform,
    threadId: "t1",
    storage,
    initialMessages: initial,
  })
  const events: BaseEvent[] = []
  agent.subscribe({ onEvent: ({ event }) => void events.push(event) })
  return { agent, types: () => events.map(({ type }) => String(type)) }
}

function answerOf(agent: AirflowAgent): unknown {
  return agent.messages.filter(({ role }) => role === "assistant").map(({ content }) => content)
}

describe("run", () => {
  test("streams the answer and returns the result", async () => {
    const server = createServer([STARTED, ...text("Because"), TEXT_END, FINISHED])
    const { agent } = createAgent(server)
    expect((await agent.runAgent({ runId: "r1" })).result).toBe("Because")
    expect(answerOf(agent)).toEqual(["Because"])
    expect(server.calls.map(({ path }) => path)).toEqual([PATH])
  })

  test("continues after a lost connection, and at another server", async () => {
    const step = { type: "STEP_STARTED", stepName: "answer" }
    const server = createServer(
      [STARTED, step, ...text("Be")],
      503,
      [STARTED, step, ...text("cau"), TEXT_END, { type: "STEP_FINISHED", stepName: "answer" }, CLOSING],
      [STARTED, ...text("se"), TEXT_END, FINISHED],
    )
    const { agent, types } = createAgent(server)
    expect((await agent.runAgent({ runId: "r1" })).result).toBe("Because")
    expect(answerOf(agent)).toEqual(["Because"])
    expect(types().filter((type) => type === "RUN_STARTED")).toHaveLength(1)
    expect(types()).not.toContain("RUN_ERROR")
    const connect = `${PATH}/t1/connect`
    expect(server.calls.map(({ path }) => path)).toEqual([PATH, connect, connect, connect])
    expect(server.calls.map(({ body }) => body.messages[1]?.content)).toEqual([undefined, "Be", "Be", "Becau"])
  })

  test("continues a tool call that was cut", async () => {
    const id = `${RUN}/answer/1/c1`
    const start = { type: "TOOL_CALL_START", toolCallId: id, toolCallName: "look_up" }
    const args = (delta: string) => ({ type: "TOOL_CALL_ARGS", toolCallId: id, delta })
    const server = createServer(
      [STARTED, start, args('{"of":')],
      [STARTED, start, args('"sky"}'), { type: "TOOL_CALL_END", toolCallId: id }, CLOSING],
      [STARTED, FINISHED],
    )
    const { agent } = createAgent(server)
    await agent.runAgent({ runId: "r1" })
    const argumentsIn = (messages: Message[] | undefined) =>
      messages
        ?.flatMap((one) => (one.role === "assistant" ? (one.toolCalls ?? []) : []))
        .map((one) => one.function.arguments)
    expect(argumentsIn(agent.messages)).toEqual(['{"of":"sky"}'])
    expect(argumentsIn(server.calls[2]?.body.messages)).toEqual(['{"of":"sky"}'])
  })

  test("leaves the work of agents in earlier runs out of requests, and keeps it in the page", async () => {
    const call = { id: "c1", type: "function" as const, function: { name: "look_up", arguments: "{}" } }
    const earlier: Message[] = [
      { id: "m0", role: "user", content: "Who?" },
      { id: "r0/thinking-0", role: "reasoning", content: "They ask who." },
      { id: "c1", role: "assistant", toolCalls: [call] },
      { id: "c1/result", role: "tool", toolCallId: "c1", content: "x".repeat(1000) },
      { id: "r0", role: "assistant", content: "Ada" },
    ]
    const replaced = { type: "MESSAGES_SNAPSHOT", messages: [earlier[0], earlier[4], QUESTION] }
    const thinking = { messageId: `${RUN}/thinking-0` }
    const server = createServer(
      [
        STARTED,
        { type: "REASONING_START", ...thinking },
        { type: "REASONING_MESSAGE_START", ...thinking, role: "reasoning" },
        { type: "REASONING_MESSAGE_CONTENT", ...thinking, delta: "Hm" },
      ],
      [STARTED, replaced, ...text("Because"), TEXT_END, FINISHED],
    )
    const { agent } = createAgent(server, createStorage(), [...earlier, QUESTION])
    await agent.runAgent({ runId: "r1" })
    const ids = server.calls.map(({ body }) => body.messages.map(({ id }) => id))
    expect(ids).toEqual([
      ["m0", "r0", "m1"],
      ["m0", "r0", "m1", `${RUN}/thinking-0`],
    ])
    expect(agent.messages.map(({ id }) => id)).toEqual([...earlier.map(({ id }) => id), "m1", RUN])
  })

  test("waits briefly again after a connection with events", async () => {
    const cut = [STARTED, ...text("Be")]
    const server = createServer(cut, 503, 503, cut, cut, [STARTED, FINISHED])
    const delays: number[] = []
    const clock = {
      now: () => 0,
      after: (ms: number, done: () => void) => {
        delays.push(ms)
        queueMicrotask(done)
        return () => {}
      },
    }
    const { agent } = createAgent({ platform: { ...server.platform, clock, random: () => 1 } })
    await agent.runAgent({ runId: "r1" })
    const [first, second, third, fourth, fifth] = delays
    expect(second).toBeGreaterThan(first ?? 0)
    expect(third).toBeGreaterThan(second ?? 0)
    expect([fourth, fifth]).toEqual([first, first])
  })

  test("repeats the request as long as it was not answered", async () => {
    const server = createServer(503, [STARTED, FINISHED])
    const { agent } = createAgent(server)
    await agent.runAgent({ runId: "r1" })
    expect(server.calls.map(({ path }) => path)).toEqual([PATH, PATH])
  })

  test("renews the token once", async () => {
    const server = createServer(401, [STARTED, FINISHED])
    await createAgent(server).agent.runAgent({ runId: "r1" })
    expect(server.calls.map(({ authorization }) => authorization)).toEqual(["Bearer old", "Bearer new"])
    const refusing = createServer(401, 401)
    await expect(createAgent(refusing).agent.runAgent()).rejects.toThrow("refused")
    expect(refusing.calls).toHaveLength(2)
  })

  test("answers an interrupt, and repeats the answer after a lost connection", async () => {
    const outcome = { type: "interrupt", interrupts: [{ id: "ask", reason: "confirmation" }] }
    const server = createServer(
      [STARTED, { ...FINISHED, result: undefined, outcome }],
      [STARTED, ...text("Be")],
      [STARTED, ...text("cause"), TEXT_END, FINISHED],
    )
    const { agent } = createAgent(server)
    await agent.runAgent({ runId: "r1" })
    const resume = agent.pendingInterrupts.map(({ id }) => ({ interruptId: id, status: "resolved" as const }))
    await agent.runAgent({ runId: "r2", resume })
    expect(answerOf(agent)).toEqual(["Because"])
    expect(server.calls.map(({ path, body }) => [path, body.resume !== undefined])).toEqual([
      [PATH, false],
      [PATH, true],
      [PATH, true],
    ])
  })

  test("a refusal is an error", async () => {
    await expect(createAgent(createServer(404)).agent.runAgent()).rejects.toThrow("refused")
  })

  test("stops the run of the DAG", async () => {
    const server = createServer([STARTED, ...text("Be")])
    const { agent, types } = createAgent(server)
    agent.subscribe({ onTextMessageContentEvent: () => agent.abortRun() })
    await agent.runAgent({ runId: "r1" })
    expect(server.calls.map(({ path }) => path)).toEqual([PATH, `${PATH}/t1/stop`])
    expect(types().slice(-2)).toEqual(["TEXT_MESSAGE_END", "RUN_FINISHED"])
  })

  test.each([false, true])("stops a run that has not started when it has, also after leaving: %s", async (leaves) => {
    const server = createServer([STARTED, ...text("Be")])
    let answer = () => {}
    const gate = new Promise<void>((resolve) => {
      answer = resolve
    })
    const fetch: typeof globalThis.fetch = async (url, init) => {
      const response = await server.platform.fetch(url, init)
      if (!String(url).endsWith("/stop")) await gate
      return response
    }
    const { agent, types } = createAgent({ platform: { ...server.platform, fetch } })
    const ended = agent.runAgent({ runId: "r1" }).catch(() => {})
    await vi.waitFor(() => expect(server.calls).toHaveLength(1))
    agent.abortRun()
    if (leaves) await agent.detachActiveRun()
    expect(server.calls.map(({ path }) => path)).toEqual([PATH])
    answer()
    await ended
    await vi.waitFor(() => expect(server.calls.map(({ path }) => path)).toEqual([PATH, `${PATH}/t1/stop`]))
    if (!leaves) expect(types()).toEqual(["RUN_STARTED", "RUN_FINISHED"])
  })

  test("leaving does not stop it", async () => {
    const server = createServer([STARTED, ...text("Be")])
    const { agent } = createAgent(server)
    agent.subscribe({ onTextMessageContentEvent: () => void agent.detachActiveRun() })
    await agent.runAgent({ runId: "r1" }).catch(() => {})
    expect(server.calls.map(({ path }) => path)).toEqual([PATH])
  })
})

describe("connect", () => {
  test("restores the messages, and streams what they lack", async () => {
    const storage = createStorage()
    const first = createServer([STARTED, ...text("Be")])
    const before = createAgent(first, storage).agent
    before.subscribe({ onTextMessageContentEvent: () => void before.detachActiveRun() })
    await before.runAgent({ runId: "r1" }).catch(() => {})

    const server = createServer([STARTED, ...text("Because"), TEXT_END, FINISHED])
    const { agent } = createAgent(server, storage, [])
    expect((await agent.connectAgent()).result).toBe("Because")
    expect(agent.messages[0]).toMatchObject(QUESTION)
    expect(server.calls[0]?.path).toBe(`${PATH}/t1/connect`)
    expect(server.calls[0]?.body.messages[0]).toMatchObject(QUESTION)
  })

  test("restores the messages alone if the server does not know the run any more", async () => {
    const answer: Message = { id: RUN, role: "assistant", content: "Because" }
    const { agent, types } = createAgent(createServer(204), createStorage(QUESTION, answer), [])
    await agent.connectAgent()
    expect(agent.messages).toMatchObject([QUESTION, answer])
    expect(types()).toEqual(["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"])
  })

  test("has nothing to restore in a new thread", async () => {
    const { agent, types } = createAgent(createServer(204), createStorage(), [])
    await agent.connectAgent()
    expect(types()).toEqual([])
  })

  test.each(["{", '"text"'])("ignores what others have stored: %s", async (stored) => {
    const storage = { getItem: () => stored, setItem: () => {} }
    const { agent } = createAgent(createServer([STARTED, FINISHED]), storage, [])
    await agent.connectAgent()
    expect(agent.messages).toEqual([])
  })
})

test("a clone reaches the same DAG", async () => {
  const server = createServer([STARTED, ...text("Because"), TEXT_END, FINISHED])
  const { agent } = createAgent(server)
  const clone = agent.clone()
  await clone.runAgent({ runId: "r1" })
  expect(answerOf(clone)).toEqual(["Because"])
  expect(answerOf(agent)).toEqual([])
})

test("capabilities come from the server", async () => {
  const platform = { fetch: async () => new Response('{"transport":{"resumable":true}}') }
  expect(await createAgent({ platform }).agent.getCapabilities()).toEqual({ transport: { resumable: true } })
})
