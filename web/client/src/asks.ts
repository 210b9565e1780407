// What the server is asked, as an address and as a message on a WebSocket of many streams. Pure.

import type { Filter, Question, RunKey } from "./types.js"

/** A stream, as `subscribe` names it (`docs/protocol.md`): plain JSON, which tabs can send each other. */
export interface Ask {
  readonly dag_id?: string | readonly string[]
  readonly run_id?: string | readonly string[]
  readonly [parameter: string]: string | readonly string[] | undefined
}

/** The path of many streams on one connection, and of all runs. */
export const ALL_RUNS = "/api/v2/stream"

/** Returns the path of a run. */
export function runPath({ dagId, runId }: RunKey): string {
  return `${runsPath(dagId)}/${encodeURIComponent(runId)}`
}

/** Returns the path at which runs of a DAG are triggered. */
export function runsPath(dagId: string): string {
  return `/api/v2/dags/${encodeURIComponent(dagId)}/dagRuns`
}

/** Returns the ask for one run. */
export function askForRun({ dagId, runId }: RunKey, { result, until, confirm }: Question): Ask {
  return { dag_id: dagId, run_id: runId, ...given({ result, until, confirm }) }
}

/** Returns the ask for many runs. */
export function askForRuns(filter: Filter): Ask {
  const { dagId, runId, taskId, state, type, tag } = filter
  // A list of runs, even an empty one, tells the server that it is not one run that is meant.
  return { ...given({ dag_id: dagId, task_id: taskId, state, type, tag }), run_id: runId ?? [] }
}

/** Returns the query of an ask; names in a path are not repeated in it. */
export function queryOf(ask: Ask): URLSearchParams {
  const query = new URLSearchParams()
  const ofOneRun = typeof ask.run_id === "string"
  for (const [name, value] of Object.entries(ask)) {
    if (ofOneRun && (name === "dag_id" || name === "run_id")) continue
    for (const one of typeof value === "string" ? [value] : (value ?? [])) query.append(name, one)
  }
  return query
}

/** Returns the path of an ask. */
export function pathOf(ask: Ask): string {
  return typeof ask.dag_id === "string" && typeof ask.run_id === "string"
    ? `${runPath({ dagId: ask.dag_id, runId: ask.run_id })}/stream`
    : ALL_RUNS
}

function given<Value>(members: Record<string, Value | undefined>): Record<string, Value> {
  return Object.fromEntries(Object.entries(members).filter((entry): entry is [string, Value] => entry[1] !== undefined))
}
