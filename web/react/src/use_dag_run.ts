import type { Client, Outcome, OutcomeOptions, RunStatus, StreamError } from "airflow-stream-client"
import { useMemo, useSyncExternalStore } from "react"
import { createRunStore, EMPTY_STORE } from "./run_stream_store.js"

/** A run, and the state of its stream. */
export interface DagRun extends RunStatus {
  /** Answer what a task of the run asks (`view.inputs`). Rejects with a `StreamError`, as `Client.answer`. */
  readonly answer: Client["answer"]
  /** Continue a stream that has failed, for example after the user has signed in. */
  readonly resume: () => void
  /** @deprecated Use `resume`. */
  readonly again: () => void
}

/**
 * Stream a run while the component is mounted.
 *
 * @param runId `null` while there is no run
 * @param options may be a new object in each rendering
 */
export function useDagRun(client: Client, dagId: string, runId: string | null, options: OutcomeOptions = {}): DagRun {
  const optionsKey = JSON.stringify([options.result, options.until, options.confirm])
  // biome-ignore lint/correctness/useExhaustiveDependencies: `optionsKey` has the content of `options`
  const store = useMemo(
    () => (runId === null ? EMPTY_STORE : createRunStore(client, dagId, runId, options)),
    [client, dagId, runId, optionsKey],
  )
  const status = useSyncExternalStore(store.subscribe, store.getStatus, store.getStatus)
  return useMemo(
    () => ({
      ...status,
      answer: (request, answer) => client.answer(request, answer),
      resume: store.resume,
      again: store.resume,
    }),
    [client, status, store],
  )
}

/** The outcome of a run. */
export interface DagRunResult {
  /** `pending` until there is one. */
  readonly outcome: Outcome
  /** Set if the stream failed; the run may still have an outcome. */
  readonly error: StreamError | null
}

/** Wait for the outcome of a run. Renders when the outcome arrives, and not for transitions before it. */
export function useDagRunResult(
  client: Client,
  dagId: string,
  runId: string | null,
  options: Pick<OutcomeOptions, "result" | "confirm"> = {},
): DagRunResult {
  const optionsKey = JSON.stringify([options.result, options.confirm])
  // biome-ignore lint/correctness/useExhaustiveDependencies: `optionsKey` has the content of `options`
  const store = useMemo(
    () => (runId === null ? EMPTY_STORE : createRunStore(client, dagId, runId, { ...options, until: "result" })),
    [client, dagId, runId, optionsKey],
  )
  const getOutcome = () => store.getStatus().view.outcome
  const getError = () => {
    const { state, error } = store.getStatus()
    return state === "failed" ? error : null
  }
  const outcome = useSyncExternalStore(store.subscribe, getOutcome, getOutcome)
  const error = useSyncExternalStore(store.subscribe, getError, getError)
  return { outcome, error }
}
