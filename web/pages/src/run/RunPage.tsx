import type { RunInfo } from "airflow-stream-client"
import { Connection } from "../parts/Connection.js"
import { Page } from "../parts/Page.js"
import { State } from "../parts/State.js"
import { apiPath, type Session, type Structure } from "../server.js"
import { useRun } from "../streams.js"
import { duration, moment, useNow } from "../time.js"
import { useAsked } from "../useAsked.js"
import { Gantt } from "./Gantt.js"
import { Graph } from "./Graph.js"
import { Log } from "./Log.js"
import { Outcome } from "./Outcome.js"
import { Stop } from "./Stop.js"
import { rowsOf } from "./tasks.js"
import "../styles/run.css"

const OVER = new Set(["success", "failed"])

interface Props {
  readonly dagId: string
  readonly runId: string
}

/** One run: its answer, its DAG, its tasks in time, and what happened. */
export default function RunPage({ dagId, runId }: Props) {
  const { view, state, error, frames } = useRun(dagId, runId)
  const { value: structure } = useAsked<Structure>(`${apiPath(dagId, runId)}/graph`)
  const { run } = view
  const over = run !== null && OVER.has(run.state ?? "")
  const now = useNow(run !== null && !over)
  const rows = rowsOf(view, structure)
  return (
    <Page title={`${dagId} ${run?.state ?? ""}`} here={null}>
      <div className="heading">
        <div>
          <p className="faint">
            <a href={`/?dag_id=${encodeURIComponent(dagId)}`}>{dagId}</a>
          </p>
          <h1>{runId}</h1>
        </div>
        <Connection state={state} />
      </div>
      {run === null ? (
        <p className="card" role="status">
          {error === null ? "Asking for the run …" : error.message}
        </p>
      ) : (
        <>
          <Facts dagId={dagId} runId={runId} run={run} over={over} now={now} />
          <Outcome view={view} over={over} rows={rows} />
          {structure !== null && structure.nodes.length > 0 && <Graph structure={structure} view={view} />}
          <Gantt rows={rows} run={run} now={now} />
          <Log frames={frames} />
        </>
      )}
    </Page>
  )
}

/** What there is to say of the run as a whole, and to do with it. */
function Facts({ dagId, runId, run, over, now }: Props & { run: RunInfo; over: boolean; now: number }) {
  const { value: session } = useAsked<Session>("/api/v2/stream/session")
  const path = `/dags/${encodeURIComponent(dagId)}/runs/${encodeURIComponent(runId)}`
  const end = run.end_date === null ? now : Date.parse(run.end_date)
  return (
    <div className="facts">
      <State state={run.state} />
      <span>
        began <b>{moment(run.start_date ?? run.queued_at)}</b>
      </span>
      {run.start_date !== null && (
        <span>
          {over ? "took" : "for"} <b>{duration(end - Date.parse(run.start_date))}</b>
        </span>
      )}
      {run.clear_number > 0 && <span>cleared {run.clear_number === 1 ? "once" : `${run.clear_number} times`}</span>}
      {session?.airflow_ui_url && <a href={`${session.airflow_ui_url}${path}`}>In Airflow</a>}
      {!over && <Stop dagId={dagId} runId={runId} />}
    </div>
  )
}
