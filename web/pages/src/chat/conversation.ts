// A conversation: what was said, and where the answer that is on its way has come to. Plain JSON, kept over a reload. Pure.

import type { Bookmark, Output, RunView } from "airflow-stream-client"

/** One question, and what became of it. */
export interface Turn {
  readonly id: string
  readonly message: string
  /** Stands for the call that triggers the run: to try it again cannot trigger another. */
  readonly key: string
  /** The run that answers, once it was triggered. */
  readonly runId: string | null
  readonly answer: Answer
  /** Where the stream of the answer stands, while it goes on. */
  readonly bookmark: Bookmark | null
}

export type Answer =
  | { readonly kind: "coming"; readonly text: string }
  | { readonly kind: "complete"; readonly text: string }
  /** There is none, for a reason that people understand; `text` is what had come of it. */
  | { readonly kind: "failed"; readonly text: string; readonly reason: string }
  | { readonly kind: "stopped"; readonly text: string }

export type Conversation = readonly Turn[]

const KEPT = 40

/** Return a new question. */
export function ask(message: string, makeId: () => string): Turn {
  const answer: Answer = { kind: "coming", text: "" }
  return { id: makeId(), message, key: makeId(), runId: null, answer, bookmark: null }
}

/** Return the conversation after a change of one turn. */
export function changed(turns: Conversation, id: string, change: Partial<Turn>): Conversation {
  return turns.map((turn) => (turn.id === id ? { ...turn, ...change } : turn))
}

/** Return the conversation without what is too long ago. */
export function kept(turns: Conversation): Conversation {
  return turns.slice(-KEPT)
}

/** Whether all that has changed between two states of a conversation is how far answers have come. */
export function isSameButForWords(before: Conversation, after: Conversation): boolean {
  return (
    before.length === after.length &&
    before.every((turn, place) => {
      const now = after[place]
      return now?.id === turn.id && now.runId === turn.runId && now.answer.kind === turn.answer.kind
    })
  )
}

/** Return what was said before a turn, as models want it. */
export function historyOf(turns: Conversation, id: string): { role: "user" | "assistant"; content: string }[] {
  const before = turns.slice(
    0,
    turns.findIndex((turn) => turn.id === id),
  )
  return before
    .filter((turn) => turn.answer.kind === "complete")
    .flatMap((turn) => [
      { role: "user" as const, content: turn.message },
      { role: "assistant" as const, content: turn.answer.text },
    ])
}

/** Return the text of an answer as far as it has come. */
export function textOf(view: RunView): string {
  if (view.outcome.kind === "result" && view.outcome.value !== undefined) return said(view.outcome.value)
  return speakers(view)
    .map((output) => output.text)
    .join("\n")
}

/** What those who answer have said; where they say nothing, what others have. */
function speakers(view: RunView): Output[] {
  const told = Object.entries(view.output).filter(([, output]) => output.text !== "")
  const answering = told.filter(([key]) => view.resultTasks.includes(key.replace(/\[\d+\]$/, "")))
  return (answering.length > 0 ? answering : told).map(([, output]) => output)
}

/** Return a value as text: that of a text, of the one text in an object, else its JSON. */
function said(value: unknown): string {
  if (typeof value === "string") return value
  if (typeof value === "object" && value !== null) {
    for (const name of ["answer", "text", "content", "message"]) {
      const text: unknown = (value as Record<string, unknown>)[name]
      if (typeof text === "string") return text
    }
  }
  return JSON.stringify(value, null, 2)
}
