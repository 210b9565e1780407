import type { RunInfo } from "airflow-stream-client"
import { useMemo } from "react"
import { buildRunApiPath, type Session, type Structure } from "../api/api.js"
import { useFetch } from "../api/useFetch.js"
import { ConnectionState } from "../components/ConnectionState.js"
import { InputForms } from "../components/InputForms.js"
import { PageLayout } from "../components/PageLayout.js"
import { StateLabel } from "../components/StateLabel.js"
import { formatDateTime, formatDuration, useNow } from "../components/time.js"
import { URL_PREFIX } from "../urlPrefix.js"
import { DagGraph } from "./DagGraph.js"
import { EventLog } from "./EventLog.js"
import { describeWaiting } from "./failureText.js"
import { GanttChart } from "./GanttChart.js"
import { OutcomeCard } from "./OutcomeCard.js"
import { StopRunButton } from "./StopRunButton.js"
import { buildTaskRows } from "./taskRows.js"
import { useRun } from "./useRun.js"
import "../styles/run.css"

const FINAL_STATES = new Set(["success", "failed"])

interface Props {
  readonly dagId: string
  readonly runId: string
}

/** One run: its outcome, DAG, tasks and events. */
export default function RunPage({ dagId, runId }: Props) {
  const { view, state, error, frames, droppedFrames, waiting } = useRun(dagId, runId)
  const { data: structure } = useFetch<Structure>(`${buildRunApiPath(dagId, runId)}/graph`)
  const { run } = view
  const isOver = run !== null && FINAL_STATES.has(run.state ?? "")
  const now = useNow(run !== null && !isOver)
  // Not again for each tick of the clock.
  const rows = useMemo(() => buildTaskRows(view, structure), [view, structure])
  return (
    <PageLayout title={`${dagId} ${run?.state ?? ""}`} current={null}>
      <div className="heading">
        <div>
          <p className="faint">
            <a href={`${URL_PREFIX}/?dag_id=${encodeURIComponent(dagId)}`}>{dagId}</a>
          </p>
          <h1>{runId}</h1>
        </div>
        <ConnectionState state={state} />
      </div>
      {run === null ? (
        <p className="card" role="status">
          {error === null ? "Loading the run…" : error.message}
        </p>
      ) : (
        <>
          <RunSummary dagId={dagId} runId={runId} run={run} isOver={isOver} now={now} />
          {waiting !== null && !isOver && (
            <p className="card" role="status">
              {describeWaiting(waiting)}
            </p>
          )}
          <InputForms view={view} />
          <OutcomeCard view={view} isOver={isOver} rows={rows} />
          {structure !== null && structure.nodes.length > 0 && <DagGraph structure={structure} view={view} />}
          <GanttChart rows={rows} run={run} now={now} />
          <EventLog frames={frames} dropped={droppedFrames} />
        </>
      )}
    </PageLayout>
  )
}

/** State, times and actions of the run. */
function RunSummary({ dagId, runId, run, isOver, now }: Props & { run: RunInfo; isOver: boolean; now: number }) {
  const { data: session } = useFetch<Session>("/api/v2/stream/session")
  const path = `/dags/${encodeURIComponent(dagId)}/runs/${encodeURIComponent(runId)}`
  const end = run.end_date === null ? now : Date.parse(run.end_date)
  return (
    <div className="summary">
      <StateLabel state={run.state} />
      <span>
        {run.start_date === null ? "Queued" : "Started"} <b>{formatDateTime(run.start_date ?? run.queued_at)}</b>
      </span>
      {run.start_date !== null && (
        <span>
          {isOver ? "Duration" : "Running for"} <b>{formatDuration(end - Date.parse(run.start_date))}</b>
        </span>
      )}
      {run.clear_number > 0 && <span>Cleared {run.clear_number === 1 ? "once" : `${run.clear_number} times`}</span>}
      {session?.airflow_ui_url && <a href={`${session.airflow_ui_url}${path}`}>Open in Airflow</a>}
      {!isOver && <StopRunButton dagId={dagId} runId={runId} />}
    </div>
  )
}
