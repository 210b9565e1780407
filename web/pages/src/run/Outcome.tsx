import type { RunView, Outcome as Told } from "airflow-stream-client"
import { progressOf } from "../progress.js"
import { pathOfTask, reasonOf } from "../words.js"
import type { TaskRow } from "./tasks.js"

interface Props {
  readonly view: RunView
  readonly over: boolean
  readonly rows: readonly TaskRow[]
}

/** The answer, or why there is none, the moment that is known. */
export function Outcome({ view, over, rows }: Props) {
  const { outcome } = view
  return (
    <section className="card outcome" data-outcome={outcome.kind} aria-labelledby="outcome">
      <div className="row spread">
        <h2 id="outcome">{TITLES[outcome.kind]}</h2>
        {outcome.kind !== "pending" && !over && <span className="aside">{whatGoesOn(rows)}</span>}
      </div>
      <div aria-live="polite">
        {outcome.kind === "pending" ? <Pending view={view} /> : <Answer outcome={outcome} over={over} />}
      </div>
    </section>
  )
}

const TITLES: Record<Told["kind"], string> = {
  pending: "Waiting for the answer",
  result: "Result",
  failure: "Failed",
  none: "Over, without an answer",
}

function whatGoesOn(rows: readonly TaskRow[]): string {
  const open = rows.filter(
    (row) => row.state !== null && !["success", "failed", "skipped", "upstream_failed", "removed"].includes(row.state),
  )
  return open.length > 0 && open.every((row) => row.isTeardown) ? "The run is still tearing down" : "The run goes on"
}

function Pending({ view }: { view: RunView }) {
  const names = view.resultTasks
  return (
    <>
      <p className="faint">
        {names.length === 0 ? "No task of this DAG answers; it ends when the run does." : `From ${names.join(", ")}.`}
      </p>
      {progressOf(view).map(([task, { fraction, text }]) => (
        <p key={task} className="progress">
          <label>
            {task}: {text}
            <progress max={1} {...(fraction == null ? {} : { value: fraction })} />
          </label>
        </p>
      ))}
    </>
  )
}

function Answer({ outcome, over }: { outcome: Exclude<Told, { kind: "pending" }>; over: boolean }) {
  if (outcome.kind === "none") return <p>The run has ended, and none of its tasks answers.</p>
  if (outcome.kind === "failure") {
    const { failure } = outcome
    return (
      <>
        <p>{reasonOf(failure)}</p>
        {failure.predicted && !over && <p className="faint">Airflow has yet to tell the tasks below it.</p>}
      </>
    )
  }
  const several = Object.keys(outcome.results).length > 1
  return (
    <>
      {Object.entries(outcome.results).map(([task, value]) => (
        <figure key={task}>
          {several && <figcaption>{task}</figcaption>}
          <Value value={value} />
        </figure>
      ))}
      {Object.entries(outcome.references).map(([task, reference]) => (
        <p key={task}>
          What {pathOfTask(task)} returned has {reference.bytes.toLocaleString()} bytes, too many to be shown here.
        </p>
      ))}
      {outcome.withheld && <p>You may see this run, and not what its tasks return.</p>}
    </>
  )
}

function Value({ value }: { value: unknown }) {
  const isText = typeof value === "string"
  return (
    <pre
      className={isText ? "text" : ""}
      // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by keyboard, too
      tabIndex={0}
    >
      {isText ? value : JSON.stringify(value, null, 2)}
    </pre>
  )
}
