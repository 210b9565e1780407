import type { Frame, RunTransition, StreamState } from "airflow-stream-client"
import { useEffect, useState } from "react"
import type { RunItem, RunList } from "../server.js"
import { signInNeeded, useSession } from "../session.js"
import { theClient } from "../streams.js"
import { useAsked } from "../useAsked.js"

const LIMIT = 50
const OVER = new Set(["success", "failed"])

export interface Runs {
  readonly runs: readonly RunItem[] | null
  readonly state: StreamState
  readonly error: string | null
}

/** Follow the youngest runs, of one DAG or of all: a list first, and from there on what happens. */
export function useRuns(dagId: string | null): Runs {
  const { generation } = useSession()
  const query = dagId === null ? "" : `&dag_id=${encodeURIComponent(dagId)}`
  const [attempt, setAttempt] = useState(0)
  const { value: list, error } = useAsked<RunList>(`/api/v2/stream/runs?limit=${LIMIT}${query}`, attempt)
  const [runs, setRuns] = useState<readonly RunItem[] | null>(null)
  const [state, setState] = useState<StreamState>("connecting")

  // biome-ignore lint/correctness/useExhaustiveDependencies: who signs in has the stream go on
  useEffect(() => {
    if (list === null) return
    setRuns(list.runs)
    const stream = theClient().follow(
      { type: ["run"], ...(dagId === null ? {} : { dagId: [dagId] }) },
      { cursor: list.cursor },
    )
    const unsubscribe = stream.subscribe((now, frames) => {
      setState(now.state)
      if (now.error?.code === "unauthenticated") signInNeeded(now.error.message)
      // What was missed can't be told: ask for the list anew.
      if (frames.some((frame) => frame.type === "reset")) setAttempt((before) => before + 1)
      else setRuns((before) => frames.reduce(after, before ?? []))
    })
    return () => {
      unsubscribe()
      stream.close()
    }
  }, [list, dagId, generation])
  return { runs, state: error === null ? state : "failed", error }
}

function after(runs: readonly RunItem[], frame: Frame): readonly RunItem[] {
  if (frame.type !== "run") return runs
  const before = runs.find((run) => run.dag_id === frame.dag_id && run.run_id === frame.run_id)
  const others = runs.filter((run) => run !== before)
  if (frame.state === null) return others
  const now = changed(before, frame, frame.state)
  return before === undefined ? [now, ...others].slice(0, LIMIT) : runs.map((run) => (run === before ? now : run))
}

function changed(before: RunItem | undefined, frame: RunTransition, state: string): RunItem {
  const over = OVER.has(state)
  const waits = state === "queued"
  return {
    dag_id: frame.dag_id,
    run_id: frame.run_id,
    state,
    run_type: before?.run_type ?? "",
    queued_at: waits ? frame.at : (before?.queued_at ?? null),
    start_date: waits ? null : (before?.start_date ?? frame.at),
    end_date: over ? frame.at : null,
  }
}
