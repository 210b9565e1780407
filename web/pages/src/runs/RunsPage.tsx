import { Connection } from "../parts/Connection.js"
import { Page } from "../parts/Page.js"
import { State } from "../parts/State.js"
import { runPath } from "../place.js"
import type { RunItem } from "../server.js"
import { duration, moment, useNow } from "../time.js"
import { useRuns } from "./useRuns.js"

/** The youngest runs, live. */
export function RunsPage() {
  const dagId = new URLSearchParams(location.search).get("dag_id")
  const { runs, state, error } = useRuns(dagId)
  const now = useNow(runs?.some((run) => run.end_date === null) ?? false)
  return (
    <Page title="Runs" here="runs">
      <div className="heading">
        <h1>{dagId === null ? "Recent runs" : `Runs of ${dagId}`}</h1>
        <Connection state={state} />
      </div>
      {error !== null && <p className="card problem">{error}</p>}
      {runs?.length === 0 && <p className="card">No run yet. Trigger one in Airflow, and it appears here.</p>}
      {runs !== null && runs.length > 0 && (
        <table className="runs">
          <thead>
            <tr>
              <th scope="col">State</th>
              <th scope="col">DAG</th>
              <th scope="col">Run</th>
              <th scope="col">Began</th>
              <th scope="col">Took</th>
            </tr>
          </thead>
          <tbody>
            {runs.map((run) => (
              <Row key={`${run.dag_id} ${run.run_id}`} run={run} now={now} />
            ))}
          </tbody>
        </table>
      )}
    </Page>
  )
}

function Row({ run, now }: { run: RunItem; now: number }) {
  const end = run.end_date === null ? now : Date.parse(run.end_date)
  return (
    <tr>
      <td>
        <State state={run.state} />
      </td>
      <td>
        <a className="quiet" href={`/?dag_id=${encodeURIComponent(run.dag_id)}`}>
          {run.dag_id}
        </a>
      </td>
      <td className="id">
        <a href={runPath(run.dag_id, run.run_id)}>{run.run_id}</a>
      </td>
      <td>{moment(run.start_date ?? run.queued_at)}</td>
      <td>{run.start_date === null ? "—" : duration(end - Date.parse(run.start_date))}</td>
    </tr>
  )
}
