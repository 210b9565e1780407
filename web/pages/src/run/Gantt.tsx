import type { RunInfo, TaskInfo } from "airflow-stream-client"
import { State } from "../parts/State.js"
import { duration } from "../time.js"
import type { TaskRow } from "./tasks.js"

const MAX_BARS = 100

interface Props {
  readonly rows: readonly TaskRow[]
  readonly run: RunInfo
  readonly now: number
}

/** The tasks in time, growing as they run. */
export function Gantt({ rows, run, now }: Props) {
  const begun = rows.flatMap((row) => row.instances).flatMap((task) => task.start_date ?? [])
  const from = Math.min(...[run.start_date, ...begun].flatMap((at) => at ?? []).map(Date.parse))
  const to = run.end_date === null ? now : Date.parse(run.end_date)
  const span = Math.max(1000, to - from)
  const place = (task: TaskInfo) => {
    const start = Date.parse(task.start_date ?? "")
    const end = task.end_date === null ? to : Date.parse(task.end_date)
    const left = Math.min(1, Math.max(0, (start - from) / span))
    return { left: `${left * 100}%`, width: `${Math.max(0, Math.min(1 - left, (end - start) / span)) * 100}%` }
  }
  return (
    <section className="card" aria-labelledby="gantt">
      <h2 id="gantt">Tasks in time</h2>
      <table className="gantt">
        <thead>
          <tr>
            {["Task", "State", "When", "Took"].map((title) => (
              <th key={title} scope="col">
                <span className="unseen">{title}</span>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.taskId}>
              <th scope="row">
                {row.taskId}
                {row.isResult && <span className="tag">result</span>}
              </th>
              <td className="counts">
                <Counts row={row} />
              </td>
              <td className="track" aria-hidden="true">
                {row.instances
                  .filter((task) => task.start_date !== null)
                  .slice(0, MAX_BARS)
                  .map((task) => (
                    <span key={task.map_index} data-state={task.state ?? "no_status"} style={place(task)} />
                  ))}
              </td>
              <td className="took">{took(row.instances, now)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  )
}

function Counts({ row }: { row: TaskRow }) {
  const counts = Object.entries(row.counts)
  if (counts.length < 2 && (counts[0]?.[1] ?? 0) < 2) return <State state={row.state} />
  return counts.map(([state, count]) => (
    <span key={state} className="count">
      {count} <State state={state} />
    </span>
  ))
}

function took(instances: readonly TaskInfo[], now: number): string {
  const begun = instances.filter((task) => task.start_date !== null)
  if (begun.length === 0) return ""
  const from = Math.min(...begun.map((task) => Date.parse(task.start_date ?? "")))
  const to = Math.max(...begun.map((task) => (task.end_date === null ? now : Date.parse(task.end_date))))
  return duration(to - from)
}
