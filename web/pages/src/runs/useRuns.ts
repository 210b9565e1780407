import type { Frame, RunTransition, StreamState } from "airflow-stream-client"
import { useEffect, useState } from "react"
import type { RunItem, RunList } from "../api/api.js"
import { getClient } from "../api/streamClient.js"
import { useFetch } from "../api/useFetch.js"
import { requireSignIn, useSignInState } from "../session/signInState.js"

const LIMIT = 50
const FINAL_STATES = new Set(["success", "failed"])

export interface RunsState {
  readonly runs: readonly RunItem[] | null
  readonly state: StreamState
  readonly error: string | null
}

/** Return the newest runs, of one DAG or of all: first a list, then updated by the transitions after it. */
export function useRuns(dagId: string | null): RunsState {
  const { signInCount: generation } = useSignInState()
  const query = dagId === null ? "" : `&dag_id=${encodeURIComponent(dagId)}`
  const [attempt, setAttempt] = useState(0)
  const { data: list, error } = useFetch<RunList>(`/api/v2/stream/runs?limit=${LIMIT}${query}`, attempt)
  const [runs, setRuns] = useState<readonly RunItem[] | null>(null)
  const [state, setState] = useState<StreamState>("connecting")

  // biome-ignore lint/correctness/useExhaustiveDependencies: a sign-in reopens the stream
  useEffect(() => {
    if (list === null) return
    setRuns(list.runs)
    const stream = getClient().follow(
      { type: ["run"], ...(dagId === null ? {} : { dagId: [dagId] }) },
      { cursor: list.cursor },
    )
    const unsubscribe = stream.subscribe((status, frames) => {
      setState(status.state)
      if (status.error?.code === "unauthenticated") requireSignIn(status.error.message)
      // Transitions were lost: fetch the list again.
      if (frames.some((frame) => frame.type === "reset")) setAttempt((before) => before + 1)
      else setRuns((before) => frames.reduce(applyFrame, before ?? []))
    })
    return () => {
      unsubscribe()
      stream.close()
    }
  }, [list, dagId, generation])
  return { runs, state: error === null ? state : "failed", error }
}

function applyFrame(runs: readonly RunItem[], frame: Frame): readonly RunItem[] {
  if (frame.type !== "run") return runs
  const before = runs.find((run) => run.dag_id === frame.dag_id && run.run_id === frame.run_id)
  const others = runs.filter((run) => run !== before)
  if (frame.state === null) return others
  const now = applyTransition(before, frame, frame.state)
  return before === undefined ? [now, ...others].slice(0, LIMIT) : runs.map((run) => (run === before ? now : run))
}

function applyTransition(before: RunItem | undefined, frame: RunTransition, state: string): RunItem {
  const isOver = FINAL_STATES.has(state)
  const isQueued = state === "queued"
  return {
    dag_id: frame.dag_id,
    run_id: frame.run_id,
    state,
    run_type: before?.run_type ?? "",
    queued_at: isQueued ? frame.at : (before?.queued_at ?? null),
    start_date: isQueued ? null : (before?.start_date ?? frame.at),
    end_date: isOver ? frame.at : null,
  }
}
