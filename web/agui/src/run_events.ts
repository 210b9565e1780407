// The events of one run, over several connections: a client of AG-UI gets one sequence that its verifier accepts.

import type { BaseEvent, Message } from "@ag-ui/client"

/** An event as it is sent. */
export interface WireEvent {
  readonly type: string
  readonly [name: string]: unknown
}

interface KnownMessage {
  id: string
  role: string
  content?: string
  toolCallId?: string
  toolCalls?: { id: string; type: "function"; function: { name: string; arguments: string } }[]
}

/** What ends each kind of event that stays open, by the event that begins it. */
const ENDS: Readonly<Record<string, string>> = {
  STEP_STARTED: "STEP_FINISHED",
  TEXT_MESSAGE_START: "TEXT_MESSAGE_END",
  TOOL_CALL_START: "TOOL_CALL_END",
  REASONING_START: "REASONING_END",
  REASONING_MESSAGE_START: "REASONING_MESSAGE_END",
}
const BEGINNINGS: Readonly<Record<string, string>> = Object.fromEntries(Object.entries(ENDS).map(([a, b]) => [b, a]))
const NAMES = ["stepName", "toolCallId", "messageId"] as const

export class RunEvents {
  isStarted = false
  /** Whether the run of the protocol has ended. */
  isComplete = false
  /** Number of events, over all connections. */
  received = 0
  /** Called when the run has started, after all events of the start. */
  onStarted: () => void = () => {}
  readonly #emit: (event: BaseEvent) => void
  #messages: KnownMessage[]
  /** The ends of what is open, by the beginning. */
  readonly #open = new Map<string, WireEvent>()

  /** @param messages those of the client; they are sent as a snapshot if it does not have them yet */
  constructor(messages: readonly Message[], emit: (event: BaseEvent) => void) {
    this.#emit = emit
    this.#messages = structuredClone(messages) as unknown as KnownMessage[]
  }

  /** The messages as the events have changed them, for a request. The server compares them with the run. */
  get messages(): Message[] {
    const lastQuestion = this.#messages.map(({ role }) => role).lastIndexOf("user")
    const sent = this.#messages.filter(
      (one, index) => one.role !== "activity" && (index > lastQuestion || !isDetail(one)),
    )
    return structuredClone(sent) as unknown as Message[]
  }

  /** Pass an event on. Returns whether the connection has nothing more: the run has ended, or goes on at another server. */
  apply(event: WireEvent, restored: readonly Message[] = []): boolean {
    this.received += 1
    if (event.type === "RUN_ERROR" && isReconnectable(event)) return true
    if (event.type === "RUN_STARTED") {
      this.#start(event, restored)
      return false
    }
    const known = event.type === "MESSAGES_SNAPSHOT" ? { ...event, messages: this.#merge(event) } : event
    this.#track(known)
    this.#reduce(known)
    this.isComplete ||= event.type === "RUN_FINISHED" || event.type === "RUN_ERROR"
    this.#emit(known as unknown as BaseEvent)
    return this.isComplete
  }

  /** End what is open, in reverse order: the next connection begins it again. */
  closeOpen(): void {
    for (const event of [...this.#open.values()].reverse()) this.#emit(event as unknown as BaseEvent)
    this.#open.clear()
  }

  #start(event: WireEvent, restored: readonly Message[]): void {
    if (this.isStarted) return
    this.isStarted = true
    this.#emit(event as unknown as BaseEvent)
    if (restored.length > 0) this.#emit({ type: "MESSAGES_SNAPSHOT", messages: restored } as unknown as BaseEvent)
    this.onStarted()
  }

  /** A snapshot of the server has no messages that the request left out. */
  #merge({ messages }: WireEvent): KnownMessage[] {
    const sent = new Set(this.messages.map(({ id }) => id))
    const held = new Map((messages as KnownMessage[]).map((one) => [one.id, one]))
    const kept = this.#messages.filter(({ id, role }) => role !== "activity" && (held.has(id) || !sent.has(id)))
    const ids = new Set(kept.map(({ id }) => id))
    return [...kept.map((one) => held.get(one.id) ?? one), ...[...held.values()].filter(({ id }) => !ids.has(id))]
  }

  #track(event: WireEvent): void {
    const name = NAMES.find((member) => event[member] !== undefined)
    if (name === undefined) return
    const end = ENDS[event.type]
    const beginning = end === undefined ? BEGINNINGS[event.type] : event.type
    if (beginning === undefined) return
    const key = `${beginning} ${event[name]}`
    if (end === undefined) this.#open.delete(key)
    else this.#open.set(key, { type: end, [name]: event[name] })
  }

  #reduce(event: WireEvent): void {
    const { messageId, toolCallId, delta, toolCallName, content, messages } = event as Readonly<Record<string, string>>
    switch (event.type) {
      case "TEXT_MESSAGE_CONTENT":
      case "REASONING_MESSAGE_CONTENT": {
        const role = event.type === "TEXT_MESSAGE_CONTENT" ? "assistant" : "reasoning"
        const message = this.#find(messageId, role)
        message.content = (message.content ?? "") + delta
        break
      }
      case "TOOL_CALL_START":
        // Arguments of a call that was cut go on.
        this.#find(toolCallId, "assistant").toolCalls ??= [
          { id: toolCallId ?? "", type: "function", function: { name: toolCallName ?? "", arguments: "" } },
        ]
        break
      case "TOOL_CALL_ARGS":
        for (const call of this.#find(toolCallId, "assistant").toolCalls ?? []) call.function.arguments += delta
        break
      case "TOOL_CALL_RESULT":
        Object.assign(this.#find(messageId, "tool"), { toolCallId, content })
        break
      case "MESSAGES_SNAPSHOT":
        this.#messages = structuredClone(messages) as unknown as KnownMessage[]
        break
    }
  }

  #find(id: string | undefined, role: string): KnownMessage {
    let message = this.#messages.find((one) => one.id === id)
    if (message === undefined) {
      message = { id: id ?? "", role }
      this.#messages.push(message)
    }
    return message
  }
}

/** Whether it is one of the messages about the work of an agent, which no later run needs. They can be large. */
function isDetail({ role, content, toolCalls }: KnownMessage): boolean {
  return role === "tool" || role === "reasoning" || (role === "assistant" && toolCalls !== undefined && !content)
}

function isReconnectable(event: WireEvent): boolean {
  return (event.metadata as { airflow?: { reconnect?: boolean } } | undefined)?.airflow?.reconnect === true
}
