import type { RunItem } from "../api/api.js"
import { ConnectionState } from "../components/ConnectionState.js"
import { PageLayout } from "../components/PageLayout.js"
import { StateLabel } from "../components/StateLabel.js"
import { formatDateTime, formatDuration, useNow } from "../components/time.js"
import { buildRunPagePath } from "../routes.js"
import { URL_PREFIX } from "../urlPrefix.js"
import { useRuns } from "./useRuns.js"

/** The newest runs, live. */
export function RunsPage() {
  const dagId = new URLSearchParams(location.search).get("dag_id")
  const { runs, state, error } = useRuns(dagId)
  const now = useNow(runs?.some((run) => run.end_date === null) ?? false)
  return (
    <PageLayout title="Runs" current="runs">
      <div className="heading">
        <h1>{dagId === null ? "Recent runs" : `Runs of ${dagId}`}</h1>
        <ConnectionState state={state} />
      </div>
      {error !== null && <p className="card problem">{error}</p>}
      {runs?.length === 0 && <p className="card">No runs yet. Trigger a run in Airflow to see it here.</p>}
      {runs !== null && runs.length > 0 && (
        <table className="runs">
          <thead>
            <tr>
              <th scope="col">State</th>
              <th scope="col">DAG</th>
              <th scope="col">Run</th>
              <th scope="col">Start date</th>
              <th scope="col">Duration</th>
            </tr>
          </thead>
          <tbody>
            {runs.map((run) => (
              <Row key={`${run.dag_id} ${run.run_id}`} run={run} now={now} />
            ))}
          </tbody>
        </table>
      )}
    </PageLayout>
  )
}

function Row({ run, now }: { run: RunItem; now: number }) {
  const end = run.end_date === null ? now : Date.parse(run.end_date)
  return (
    <tr>
      <td>
        <StateLabel state={run.state} />
      </td>
      <td>
        <a className="quiet" href={`${URL_PREFIX}/?dag_id=${encodeURIComponent(run.dag_id)}`}>
          {run.dag_id}
        </a>
      </td>
      <td className="id">
        <a href={buildRunPagePath(run.dag_id, run.run_id)}>{run.run_id}</a>
      </td>
      <td>{formatDateTime(run.start_date ?? run.queued_at)}</td>
      <td>{run.start_date === null ? "—" : formatDuration(end - Date.parse(run.start_date))}</td>
    </tr>
  )
}
