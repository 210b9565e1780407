// One question of a conversation and its answer, and how an answer follows from a run. Pure.

import type { Outcome, RunStatus, RunView, StreamState } from "airflow-stream-client"

/**
 * A question and its answer.
 *
 *   status      event                                    becomes
 *   asking      the run emits text                       answering
 *   asking,     result                                   answered
 *   answering   failure of the run                       failed
 *               the run ends without a result            answered, and `problem` is the reason
 *               the stream fails                         failed, and `lost`
 *               `stop`                                   stopped
 *   failed,     `retry`                                  asking: the same run if `lost`, else another run
 *   stopped
 */
export interface ChatTurn {
  readonly id: string
  readonly question: string
  /** The text so far. */
  readonly answer: string
  readonly status: "asking" | "answering" | "answered" | "failed" | "stopped"
  /** Why there is no answer, as a text for users. A run that ends without a result has not failed. */
  readonly problem: string | null
  /** Whether the stream failed and not the run. `retry` then continues with the same run. */
  readonly lost: boolean
  readonly progress: { readonly fraction: number | null; readonly text: string | null } | null
  readonly runId: string | null
  /** State of the stream; `ended` after the answer. */
  readonly connection: StreamState
  /** The run; `null` for turns that were complete before the page was loaded. */
  readonly view: RunView | null
}

export type ResultOutcome = Outcome & { kind: "result" }

/** Return why a run has neither a result nor a failure. */
function describeMissingOutcome({ reason, taskId }: Outcome & { kind: "none" }): string {
  if (reason === "task_skipped") return `The run has ended without a result: task ${taskId} was skipped.`
  if (reason === "run_ended") return "The run has ended before its result tasks had a value."
  return "The run has ended without a result: the DAG has no result task."
}

export function isOpen({ status }: Pick<ChatTurn, "status">): boolean {
  return status === "asking" || status === "answering"
}

export function createTurn(id: string, question: string): ChatTurn {
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

/** Return the members of a turn that follow from the status of its run. */
export function answerOf(
  { view, state, error }: RunStatus,
  textOf: (outcome: ResultOutcome) => string,
): Partial<ChatTurn> {
  const { outcome } = view
  const text = emittedText(view)
  const progress = Object.values(view.output).flatMap((output) => output.progress ?? [])
  if (outcome.kind === "result") {
    return { answer: textOf(outcome) || text, status: "answered", progress: null, problem: null }
  }
  if (outcome.kind === "failure") {
    return { answer: text, status: "failed", problem: describeFailure(outcome), progress: null }
  }
  if (outcome.kind === "none") {
    return { answer: text, status: "answered", problem: describeMissingOutcome(outcome), progress: null }
  }
  if (state === "failed") return { answer: text, status: "failed", problem: error?.message ?? "", lost: true }
  return { answer: text, status: text ? "answering" : "asking", progress: progress.at(-1) ?? null }
}

/** Return the text that the result tasks have emitted; that of all tasks if result tasks emit nothing. */
function emittedText({ output, resultTasks }: RunView): string {
  const all = Object.entries(output)
  const ofResultTasks = all.filter(([key]) => resultTasks.includes(key.replace(/\[\d+\]$/, "")))
  const join = (outputs: typeof all) => outputs.map(([, { text }]) => text).join("")
  return join(ofResultTasks) || join(all)
}

/** Return the value of a result as text: itself, its member `text` or `answer`, or its JSON. */
export function textOfResult({ value, withheld }: ResultOutcome): string {
  if (withheld) return "You do not have permission to read this answer."
  if (typeof value === "string") return value
  for (const member of ["text", "answer"]) {
    const text = (value as Record<string, unknown> | null)?.[member]
    if (typeof text === "string") return text
  }
  return value === undefined || value === null ? "" : JSON.stringify(value)
}

function describeFailure({ failure }: Outcome & { kind: "failure" }): string {
  const { reason, task_id, try_number } = failure
  const where = task_id ? ` in ${task_id}${try_number ? `, try ${try_number}` : ""}` : ""
  return `${reason.replaceAll("_", " ")}${where}`
}
