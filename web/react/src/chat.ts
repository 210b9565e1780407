// A conversation with a DAG: each question triggers a run, and its answer comes as it is written. No React in it.

import type { Client, Outcome, RunStream, RunView, StreamState } from "airflow-stream-client"
import { inWords } from "./run_store.js"

/** A question and its answer. */
export interface ChatTurn {
  readonly id: string
  readonly question: string
  /** As far as it has been written. */
  readonly answer: string
  readonly status: "asking" | "answering" | "answered" | "failed" | "stopped"
  /** Why there is no answer, in words. */
  readonly problem: string | null
  /** Whether it was the stream that failed, and not the run: `retry` takes up the same run. */
  readonly lost: boolean
  readonly progress: { readonly fraction: number | null; readonly text: string | null } | null
  readonly runId: string | null
  /** How the connection is doing; `ended` for what is over. */
  readonly connection: StreamState
  /** The run; `null` for what was over before the page was loaded. */
  readonly view: RunView | null
}

/** What a DAG is told of an earlier turn. */
export interface ChatMessage {
  readonly role: "user" | "assistant"
  readonly content: string
}

export interface ChatOptions {
  /** Returns the `conf` of a run; by default `{ message, history }`. */
  readonly confOf?: (message: string, history: readonly ChatMessage[]) => Readonly<Record<string, unknown>>
  /** Returns the text of an answer; by default the value, or its member `text` or `answer`. */
  readonly textOf?: (outcome: Outcome & { kind: "result" }) => string
  /** Where the conversation is kept, such as `sessionStorage`; then a reload does not end it. */
  readonly storage?: Pick<Storage, "getItem" | "setItem"> | undefined
}

/** What is kept of a turn. */
type Kept = Pick<ChatTurn, "id" | "question" | "answer" | "status" | "problem" | "lost" | "runId">

/** A turn that is not over. */
const OPEN: ReadonlySet<ChatTurn["status"]> = new Set(["asking", "answering"])

export class Chat {
  #turns: readonly ChatTurn[] = []
  readonly #client: Client
  readonly #dagId: string
  readonly #options: ChatOptions
  readonly #streams = new Map<string, RunStream>()
  readonly #listeners = new Set<() => void>()
  #opened = false

  constructor(client: Client, dagId: string, options: ChatOptions) {
    this.#client = client
    this.#dagId = dagId
    this.#options = options
    this.#turns = this.#load()
  }

  readonly getTurns = (): readonly ChatTurn[] => this.#turns

  /** Whoever listens keeps the streams open; they are taken up again for who listens next. */
  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener)
    if (!this.#opened) this.#takeUp()
    return () => {
      this.#listeners.delete(listener)
      // React's strict mode leaves, and is back at once.
      queueMicrotask(() => {
        if (this.#listeners.size === 0) this.#leave()
      })
    }
  }

  /** Asks. Only when the answer to the last question is over. */
  readonly send = (question: string): void => {
    if (this.#turns.some(({ status }) => OPEN.has(status))) return
    this.#change([...this.#turns, asked(crypto.randomUUID(), question)])
    this.#follow(this.#turns.length - 1)
  }

  /** Asks the last question again, if it was not answered; or goes on with its run, if that was lost from sight. */
  readonly retry = (): void => {
    const last = this.#turns.at(-1)
    if (last === undefined || last.status === "answered" || OPEN.has(last.status)) return
    const again = last.lost ? { ...asked(last.id, last.question), runId: last.runId } : null
    this.#change([...this.#turns.slice(0, -1), ...(again ? [again] : [])])
    if (again) this.#follow(this.#turns.length - 1)
    else this.send(last.question)
  }

  /** Stops the run that is answering. */
  readonly stop = async (): Promise<void> => {
    const turn = this.#turns.find(({ status }) => OPEN.has(status))
    if (turn === undefined) return
    const stream = this.#streams.get(turn.id)
    this.#update(turn.id, { status: "stopped", connection: "ended" })
    try {
      const runId = turn.runId ?? (await stream?.started)?.runId
      if (runId !== undefined) await this.#client.cancel(this.#dagId, runId)
    } catch (error) {
      this.#update(turn.id, { problem: inWords(error) })
    }
    this.#drop(turn.id)
  }

  /** Forgets the conversation; what is being answered goes on by itself. */
  readonly clear = (): void => {
    for (const id of [...this.#streams.keys()]) this.#drop(id)
    this.#change([])
  }

  #takeUp(): void {
    this.#opened = true
    this.#turns.forEach(({ status }, place) => {
      if (OPEN.has(status)) this.#follow(place)
    })
  }

  #leave(): void {
    this.#opened = false
    for (const id of [...this.#streams.keys()]) this.#drop(id)
  }

  #follow(place: number): void {
    const turn = this.#turns[place]
    if (turn === undefined || this.#streams.has(turn.id)) return
    const { confOf = (message, history) => ({ message, history }) } = this.#options
    const stream =
      turn.runId === null
        ? // The same key again, after a reload: a question is asked once.
          this.#client.run(this.#dagId, confOf(turn.question, this.#history(place)), { idempotencyKey: turn.id })
        : this.#client.watch(this.#dagId, turn.runId)
    this.#streams.set(turn.id, stream)
    stream.started.then(({ runId }) => this.#update(turn.id, { runId })).catch(() => {})
    const show = () => this.#show(turn.id, stream)
    stream.subscribe(show)
    show()
  }

  #show(id: string, stream: RunStream): void {
    const turn = this.#turns.find((other) => other.id === id)
    if (turn === undefined || !OPEN.has(turn.status) || stream.state === "closed") return
    this.#update(id, { ...this.#told(stream), view: stream.view, connection: stream.state })
    if (stream.state === "ended" || stream.state === "failed") this.#streams.delete(id)
  }

  /** Returns what a stream says of its turn. */
  #told({ view, state, current }: RunStream): Partial<ChatTurn> {
    const { outcome } = view
    const text = textSaid(view)
    const progress = Object.values(view.output).flatMap((output) => output.progress ?? [])
    if (outcome.kind === "result") {
      const { textOf = textOfValue } = this.#options
      return { answer: textOf(outcome) || text, status: "answered", progress: null, problem: null }
    }
    if (outcome.kind === "failure") return { answer: text, status: "failed", problem: whyNot(outcome), progress: null }
    if (outcome.kind === "none") return { answer: text, status: text ? "answered" : "failed", problem: NOBODY_ANSWERS }
    if (state === "failed") return { answer: text, status: "failed", problem: inWords(current.error), lost: true }
    return { answer: text, status: text ? "answering" : "asking", progress: progress.at(-1) ?? null }
  }

  #history(place: number): ChatMessage[] {
    return this.#turns
      .slice(0, place)
      .filter(({ status }) => status === "answered")
      .flatMap(({ question, answer }) => [
        { role: "user", content: question },
        { role: "assistant", content: answer },
      ])
  }

  #update(id: string, change: Partial<ChatTurn>): void {
    this.#change(this.#turns.map((turn) => (turn.id === id ? { ...turn, ...change } : turn)))
  }

  #change(turns: readonly ChatTurn[]): void {
    this.#turns = turns
    this.#save()
    for (const listener of [...this.#listeners]) listener()
  }

  #drop(id: string): void {
    this.#streams.get(id)?.close()
    this.#streams.delete(id)
  }

  /** Only what is over is kept word for word: what is being written is told anew by the server. */
  #save(): void {
    const kept = this.#turns.map(({ id, question, answer, status, problem, lost, runId }): Kept => {
      return { id, question, answer: OPEN.has(status) ? "" : answer, status, problem, lost, runId }
    })
    const text = JSON.stringify(kept)
    if (text === this.#saved) return
    this.#saved = text
    this.#options.storage?.setItem(this.#key(), text)
  }

  #saved = ""

  #load(): ChatTurn[] {
    try {
      const kept = JSON.parse(this.#options.storage?.getItem(this.#key()) ?? "[]") as Kept[]
      return kept.map((turn) => {
        const open = OPEN.has(turn.status)
        return { ...asked(turn.id, turn.question), ...turn, connection: open ? "connecting" : "ended" }
      })
    } catch {
      // Of another version, perhaps.
      return []
    }
  }

  #key(): string {
    return `airflow-stream-chat:${this.#dagId}`
  }
}

const NOBODY_ANSWERS = "The run has ended, and none of its tasks answers."

function asked(id: string, question: string): ChatTurn {
  return {
    id,
    question,
    answer: "",
    status: "asking",
    problem: null,
    lost: false,
    progress: null,
    runId: null,
    connection: "connecting",
    view: null,
  }
}

/** Returns what the tasks have said that answer; of all tasks, where those say nothing. */
function textSaid({ output, resultTasks }: RunView): string {
  const said = Object.entries(output)
  const answering = said.filter(([key]) => resultTasks.includes(key.replace(/\[\d+\]$/, "")))
  const joined = (outputs: typeof said) => outputs.map(([, { text }]) => text).join("")
  return joined(answering) || joined(said)
}

function textOfValue({ value, withheld }: Outcome & { kind: "result" }): string {
  if (withheld) return "You may not read this answer."
  if (typeof value === "string") return value
  for (const member of ["text", "answer"]) {
    const text = (value as Record<string, unknown> | null)?.[member]
    if (typeof text === "string") return text
  }
  return value === undefined || value === null ? "" : JSON.stringify(value)
}

function whyNot({ failure }: Outcome & { kind: "failure" }): string {
  const { reason, task_id, try_number } = failure
  const where = task_id ? ` in ${task_id}${try_number ? `, try ${try_number}` : ""}` : ""
  return `${reason.replaceAll("_", " ")}${where}`
}
