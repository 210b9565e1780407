import type { Client, Current, Outcome, Question, StreamError } from "airflow-stream-client"
import { useMemo, useSyncExternalStore } from "react"
import { NO_RUN, storeOf } from "./run_store.js"

/** A run as it is now, and how its stream is doing. */
export interface DagRun extends Current {
  /** Begins again where a stream that failed had come: after a sign-in, for example. */
  readonly again: () => void
}

/**
 * Follows a run while the component is there.
 *
 * @param runId `null` as long as there is no run to follow
 * @param question what the stream is asked; it may be a new object each time
 */
export function useDagRun(client: Client, dagId: string, runId: string | null, question: Question = {}): DagRun {
  const asked = JSON.stringify([question.result, question.until, question.confirm])
  // biome-ignore lint/correctness/useExhaustiveDependencies: `asked` is what the question says
  const store = useMemo(
    () => (runId === null ? NO_RUN : storeOf(client, dagId, runId, question)),
    [client, dagId, runId, asked],
  )
  const current = useSyncExternalStore(store.subscribe, store.getCurrent, store.getCurrent)
  return useMemo(() => ({ ...current, again: store.again }), [current, store])
}

/** The answer of a run, and no more. */
export interface DagRunResult {
  /** `pending` until it is there. */
  readonly outcome: Outcome
  /** Why no answer will come, though the run may have one: the stream failed. */
  readonly error: StreamError | null
}

/** Waits for the answer of a run. The component is rendered when that comes, and not for what happens before. */
export function useDagRunResult(
  client: Client,
  dagId: string,
  runId: string | null,
  question: Pick<Question, "result" | "confirm"> = {},
): DagRunResult {
  const asked = JSON.stringify([question.result, question.confirm])
  // biome-ignore lint/correctness/useExhaustiveDependencies: `asked` is what the question says
  const store = useMemo(
    () => (runId === null ? NO_RUN : storeOf(client, dagId, runId, { ...question, until: "result" })),
    [client, dagId, runId, asked],
  )
  const outcomeNow = () => store.getCurrent().view.outcome
  const errorNow = () => {
    const { state, error } = store.getCurrent()
    return state === "failed" ? error : null
  }
  const outcome = useSyncExternalStore(store.subscribe, outcomeNow, outcomeNow)
  const error = useSyncExternalStore(store.subscribe, errorNow, errorNow)
  return { outcome, error }
}
