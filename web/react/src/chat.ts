// A conversation with a DAG: each question triggers a run, whose output is the answer. Independent of React.

import { type Client, createRandomId, type RunStream } from "airflow-stream-client"
import { answerOf, type ChatTurn, createTurn, isOpen, type ResultOutcome, textOfResult } from "./chat_turn.js"
import { messageOf } from "./run_stream_store.js"

/** An earlier question or answer, as a DAG receives it. */
export interface ChatMessage {
  readonly role: "user" | "assistant"
  readonly content: string
}

export interface ChatOptions {
  /** Returns the `conf` of a run; by default `{ message, history }`. */
  readonly confOf?: (message: string, history: readonly ChatMessage[]) => Readonly<Record<string, unknown>>
  /** Returns the text of an answer; by default the value, or its member `text` or `answer`. */
  readonly textOf?: (outcome: ResultOutcome) => string
  /** Where the conversation is stored, such as `sessionStorage`, so that it survives a reload. */
  readonly storage?: Pick<Storage, "getItem" | "setItem"> | undefined
}

/** The stored part of a turn. */
type StoredTurn = Pick<ChatTurn, "id" | "question" | "answer" | "status" | "problem" | "lost" | "runId">

export class Chat {
  #turns: readonly ChatTurn[] = []
  readonly #client: Client
  readonly #dagId: string
  readonly #options: ChatOptions
  /** Open streams, by the id of their turn. */
  readonly #streams = new Map<string, RunStream>()
  readonly #listeners = new Set<() => void>()
  #hasSubscribers = false
  #storedText = ""

  constructor(client: Client, dagId: string, options: ChatOptions) {
    this.#client = client
    this.#dagId = dagId
    this.#options = options
    this.#turns = this.#load()
  }

  readonly getTurns = (): readonly ChatTurn[] => this.#turns

  /** Streams are open while there are subscribers. */
  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener)
    if (!this.#hasSubscribers) this.#openStreams()
    return () => {
      this.#listeners.delete(listener)
      // Later, since React's strict mode unsubscribes and subscribes again at once.
      queueMicrotask(() => {
        if (this.#listeners.size === 0) this.#closeStreams()
      })
    }
  }

  /** Ask a question. Does nothing while another one is being answered. */
  readonly send = (question: string): void => {
    if (this.#turns.some(isOpen)) return
    this.#setTurns([...this.#turns, createTurn(createRandomId(), question)])
    this.#openStream(this.#turns.length - 1)
  }

  /** Ask the last question again if it was not answered. If only its stream failed, continue with the same run. */
  readonly retry = (): void => {
    const last = this.#turns.at(-1)
    const isAnswered = last?.status === "answered" && last.problem === null
    if (last === undefined || isAnswered || isOpen(last)) return
    const continued = last.lost ? { ...createTurn(last.id, last.question), runId: last.runId } : null
    this.#setTurns([...this.#turns.slice(0, -1), ...(continued ? [continued] : [])])
    if (continued) this.#openStream(this.#turns.length - 1)
    else this.send(last.question)
  }

  /** Cancel the run of the current question. */
  readonly stop = async (): Promise<void> => {
    const turn = this.#turns.find(isOpen)
    if (turn === undefined) return
    const stream = this.#streams.get(turn.id)
    this.#updateTurn(turn.id, { status: "stopped", connection: "ended" })
    try {
      const runId = turn.runId ?? (await stream?.started)?.runId
      if (runId !== undefined) await this.#client.cancel(this.#dagId, runId)
    } catch (error) {
      this.#updateTurn(turn.id, { problem: messageOf(error) })
    }
    this.#closeStream(turn.id)
  }

  /** Remove all turns. A run in progress continues. */
  readonly clear = (): void => {
    for (const id of [...this.#streams.keys()]) this.#closeStream(id)
    this.#setTurns([])
  }

  #openStreams(): void {
    this.#hasSubscribers = true
    this.#turns.forEach((turn, index) => {
      if (isOpen(turn)) this.#openStream(index)
    })
  }

  #closeStreams(): void {
    this.#hasSubscribers = false
    for (const id of [...this.#streams.keys()]) this.#closeStream(id)
  }

  #openStream(index: number): void {
    const turn = this.#turns[index]
    if (turn === undefined || this.#streams.has(turn.id)) return
    const { confOf = (message, history) => ({ message, history }) } = this.#options
    const stream =
      turn.runId === null
        ? // After a reload, the same key prevents a second run of the same question.
          this.#client.run(this.#dagId, confOf(turn.question, this.#historyBefore(index)), { idempotencyKey: turn.id })
        : this.#client.watch(this.#dagId, turn.runId)
    this.#streams.set(turn.id, stream)
    stream.started.then(({ runId }) => this.#updateTurn(turn.id, { runId })).catch(() => {})
    const update = () => this.#updateFromStream(turn.id, stream)
    stream.subscribe(update)
    update()
  }

  #closeStream(id: string): void {
    this.#streams.get(id)?.close()
    this.#streams.delete(id)
  }

  #updateFromStream(id: string, stream: RunStream): void {
    const turn = this.#turns.find((other) => other.id === id)
    if (turn === undefined || !isOpen(turn) || stream.state === "closed") return
    const { textOf = textOfResult } = this.#options
    this.#updateTurn(id, { ...answerOf(stream.current, textOf), view: stream.view, connection: stream.state })
    if (stream.state === "ended" || stream.state === "failed") this.#streams.delete(id)
  }

  /** Leaves out questions without an answer, also where the run has not failed: models refuse a message without content. */
  #historyBefore(index: number): ChatMessage[] {
    return this.#turns
      .slice(0, index)
      .filter(({ status, answer, problem }) => status === "answered" && (problem === null || answer !== ""))
      .flatMap(({ question, answer }) => [
        { role: "user", content: question },
        { role: "assistant", content: answer },
      ])
  }

  #updateTurn(id: string, change: Partial<ChatTurn>): void {
    this.#setTurns(this.#turns.map((turn) => (turn.id === id ? { ...turn, ...change } : turn)))
  }

  #setTurns(turns: readonly ChatTurn[]): void {
    this.#turns = turns
    this.#store()
    for (const listener of [...this.#listeners]) listener()
  }

  /** Stores no text of an answer in progress: the server sends it again, and storing each word would be slow. */
  #store(): void {
    const stored = this.#turns.map((turn): StoredTurn => {
      const { id, question, answer, status, problem, lost, runId } = turn
      return { id, question, answer: isOpen(turn) ? "" : answer, status, problem, lost, runId }
    })
    const text = JSON.stringify(stored)
    if (text === this.#storedText) return
    this.#storedText = text
    this.#options.storage?.setItem(this.#storageKey(), text)
  }

  #load(): ChatTurn[] {
    try {
      const stored = JSON.parse(this.#options.storage?.getItem(this.#storageKey()) ?? "[]") as StoredTurn[]
      return stored.map((turn) => {
        const connection = isOpen(turn) ? "connecting" : "ended"
        return { ...createTurn(turn.id, turn.question), ...turn, connection }
      })
    } catch {
      // Malformed, for example stored by another version.
      return []
    }
  }

  #storageKey(): string {
    return `airflow-stream-chat:${this.#dagId}`
  }
}
