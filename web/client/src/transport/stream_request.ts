// What a client requests from the server: as a path and a query, and as a `subscribe` message. Pure.

import type { Filter, OutcomeOptions, RunKey } from "../types.js"

/** The members of a `subscribe` message (`docs/protocol.md`). Plain JSON: tabs send it to each other. */
export interface StreamRequest {
  readonly dag_id?: string | readonly string[]
  readonly run_id?: string | readonly string[]
  readonly [parameter: string]: string | readonly string[] | undefined
}

/** The path of many runs, and of many streams on one WebSocket. */
export const MULTI_RUN_PATH = "/api/v2/stream"

/** Return the path of a run in Airflow's API. */
export function buildRunPath({ dagId, runId }: RunKey): string {
  return `${buildRunsPath(dagId)}/${encodeURIComponent(runId)}`
}

/** Return the path that triggers runs of a DAG. */
export function buildRunsPath(dagId: string): string {
  return `/api/v2/dags/${encodeURIComponent(dagId)}/dagRuns`
}

export function buildRunRequest({ dagId, runId }: RunKey, { result, until, confirm }: OutcomeOptions): StreamRequest {
  return { dag_id: dagId, run_id: runId, ...omitUndefined({ result, until, confirm }) }
}

export function buildMultiRunRequest(filter: Filter): StreamRequest {
  const { dagId, runId, taskId, state, type, tag } = filter
  // `run_id` is a list even when it is empty: with a single string the server would stream one run.
  return { ...omitUndefined({ dag_id: dagId, task_id: taskId, state, type, tag }), run_id: runId ?? [] }
}

/** Return the query of a request, without the names that its path contains. */
export function buildQuery(request: StreamRequest): URLSearchParams {
  const query = new URLSearchParams()
  const isSingleRun = typeof request.run_id === "string"
  for (const [name, value] of Object.entries(request)) {
    if (isSingleRun && (name === "dag_id" || name === "run_id")) continue
    for (const item of typeof value === "string" ? [value] : (value ?? [])) query.append(name, item)
  }
  return query
}

/** Return the path of a request's stream. */
export function buildStreamPath(request: StreamRequest): string {
  return typeof request.dag_id === "string" && typeof request.run_id === "string"
    ? `${buildRunPath({ dagId: request.dag_id, runId: request.run_id })}/stream`
    : MULTI_RUN_PATH
}

function omitUndefined<Value>(members: Record<string, Value | undefined>): Record<string, Value> {
  return Object.fromEntries(Object.entries(members).filter((entry): entry is [string, Value] => entry[1] !== undefined))
}
