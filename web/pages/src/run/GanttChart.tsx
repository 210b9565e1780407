import type { RunInfo, TaskInfo } from "airflow-stream-client"
import { useState } from "react"
import { StateLabel } from "../components/StateLabel.js"
import { formatDuration } from "../components/time.js"
import type { TaskRow } from "./taskRows.js"

const MAX_BARS = 100

/** Thousands of rows that change all the time would block the page. */
const ROWS_STEP = 300

interface Props {
  readonly rows: readonly TaskRow[]
  readonly run: RunInfo
  readonly now: number
}

/** The tasks on a time axis, updated while they run. */
export function GanttChart({ rows, run, now }: Props) {
  const [limit, setLimit] = useState(ROWS_STEP)
  const startDates = rows.flatMap((row) => [...row.earlier, ...row.instances]).flatMap((task) => task.start_date ?? [])
  const starts = [run.start_date, ...startDates].flatMap((at) => at ?? []).map(Date.parse)
  // Not by `Math.min(...starts)`: the number of arguments is limited.
  const from = starts.reduce((first, start) => Math.min(first, start), Number.POSITIVE_INFINITY)
  const to = run.end_date === null ? now : Date.parse(run.end_date)
  const span = Math.max(1000, to - from)
  const barStyle = (task: TaskInfo) => {
    const start = Date.parse(task.start_date ?? "")
    const end = task.end_date === null ? to : Date.parse(task.end_date)
    const left = Math.min(1, Math.max(0, (start - from) / span))
    return { left: `${left * 100}%`, width: `${Math.max(0, Math.min(1 - left, (end - start) / span)) * 100}%` }
  }
  return (
    <section className="card" aria-labelledby="gantt">
      <h2 id="gantt">Gantt</h2>
      <table className="gantt">
        <thead>
          <tr>
            {["Task", "State", "Timeline", "Duration"].map((title) => (
              <th key={title} scope="col">
                <span className="visually-hidden">{title}</span>
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.slice(0, limit).map((row) => (
            <tr key={row.taskId}>
              <th scope="row">
                {row.taskId}
                {row.iteration !== null && <span className="faint"> iteration {row.iteration}</span>}
                {row.isResult && <span className="tag">result</span>}
              </th>
              <td className="counts">
                <InstanceCounts row={row} />
              </td>
              <td className="track" aria-hidden="true">
                {[...row.instances, ...row.earlier]
                  .filter((task) => task.start_date !== null)
                  .slice(0, MAX_BARS)
                  .map((task) => (
                    <span
                      key={`${task.iteration} ${task.map_index}`}
                      data-state={task.state ?? "no_status"}
                      style={barStyle(task)}
                    />
                  ))}
              </td>
              <td className="duration">{formatTotalDuration(row.instances, now)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length > limit && (
        <button type="button" className="quiet" onClick={() => setLimit(limit + ROWS_STEP)}>
          Show more of {rows.length} tasks
        </button>
      )}
    </section>
  )
}

function InstanceCounts({ row }: { row: TaskRow }) {
  const counts = Object.entries(row.counts)
  if (counts.length < 2 && (counts[0]?.[1] ?? 0) < 2) return <StateLabel state={row.state} />
  return counts.map(([state, count]) => (
    <span key={state} className="count">
      {count} <StateLabel state={state} />
    </span>
  ))
}

function formatTotalDuration(instances: readonly TaskInfo[], now: number): string {
  const started = instances.filter((task) => task.start_date !== null)
  if (started.length === 0) return ""
  const from = Math.min(...started.map((task) => Date.parse(task.start_date ?? "")))
  const to = Math.max(...started.map((task) => (task.end_date === null ? now : Date.parse(task.end_date))))
  return formatDuration(to - from)
}
