// A conversation as plain JSON, which is stored across reloads. Pure.

import type { Bookmark, Output, RunStatus, RunView } from "airflow-stream-client"
import type { AgentStep } from "../components/agentSteps.js"
import { describeFailure, describeMissingOutcome } from "../run/failureText.js"

/** One question and its answer. */
export interface Turn {
  readonly id: string
  readonly message: string
  /** The `Idempotency-Key` of the trigger, so that retries don't trigger a second run. */
  readonly key: string
  /** `null` until the run is triggered. */
  readonly runId: string | null
  readonly answer: Answer
  /** What AI agents have done for the answer; absent in conversations of earlier versions. */
  readonly steps?: readonly AgentStep[]
  /** Where to resume the stream of the answer. */
  readonly bookmark: Bookmark | null
}

/** `coming` is in progress. Stored across reloads and versions: kinds cannot be renamed. */
export type Answer =
  | { readonly kind: "coming"; readonly text: string }
  | { readonly kind: "complete"; readonly text: string }
  /** `reason` is a text for users; `text` is the part that arrived before the failure. */
  | { readonly kind: "failed"; readonly text: string; readonly reason: string }
  /** The run ended with neither a result nor a failure. */
  | { readonly kind: "none"; readonly text: string; readonly reason: string }
  | { readonly kind: "stopped"; readonly text: string }

export type Conversation = readonly Turn[]

const MAX_TURNS = 40

export function createTurn(message: string, createId: () => string): Turn {
  const answer: Answer = { kind: "coming", text: "" }
  return { id: createId(), message, key: createId(), runId: null, answer, bookmark: null }
}

export function updateTurn(turns: Conversation, id: string, change: Partial<Turn>): Conversation {
  return turns.map((turn) => (turn.id === id ? { ...turn, ...change } : turn))
}

export function dropOldTurns(turns: Conversation): Conversation {
  return turns.slice(-MAX_TURNS)
}

/** Whether two versions of a conversation differ only in the text of answers. */
export function differsOnlyInText(before: Conversation, after: Conversation): boolean {
  return (
    before.length === after.length &&
    before.every((turn, index) => {
      const now = after[index]
      return now?.id === turn.id && now.runId === turn.runId && now.answer.kind === turn.answer.kind
    })
  )
}

/** Return the messages before a turn, in the format of language models. */
export function buildHistory(turns: Conversation, id: string): { role: "user" | "assistant"; content: string }[] {
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

/** Return the answer of a run so far. */
export function toAnswer({ state, view, error }: RunStatus): Answer {
  const text = getAnswerText(view)
  const { outcome } = view
  if (outcome.kind === "failure") return { kind: "failed", text, reason: describeFailure(outcome.failure) }
  if (outcome.kind === "none") return { kind: "none", text, reason: describeMissingOutcome(outcome) }
  if (outcome.kind === "result") {
    if (outcome.withheld)
      return { kind: "failed", text, reason: "You do not have permission to read the answer of this run." }
    return { kind: "complete", text }
  }
  if (state === "failed")
    return { kind: "failed", text, reason: error?.message ?? "The connection failed. Reload the page to try again." }
  return { kind: "coming", text }
}

/** Return the text of an answer: the result, or before it the output of the tasks. */
export function getAnswerText(view: RunView): string {
  if (view.outcome.kind === "result" && view.outcome.value !== undefined) return formatValue(view.outcome.value)
  return getAnswerOutputs(view)
    .map((output) => output.text)
    .join("\n")
}

/** Return the output of result tasks; that of all tasks if result tasks have none. */
function getAnswerOutputs(view: RunView): Output[] {
  const all = Object.entries(view.output).filter(([, output]) => output.text !== "")
  const ofResultTasks = all.filter(([key]) => view.resultTasks.includes(key.replace(/\[\d+\]$/, "")))
  return (ofResultTasks.length > 0 ? ofResultTasks : all).map(([, output]) => output)
}

/** Return a value as text: itself, its text member if it is an object, else its JSON. */
function formatValue(value: unknown): string {
  if (typeof value === "string") return value
  if (typeof value === "object" && value !== null) {
    for (const name of ["answer", "text", "content", "message"]) {
      const text: unknown = (value as Record<string, unknown>)[name]
      if (typeof text === "string") return text
    }
  }
  return JSON.stringify(value, null, 2)
}
