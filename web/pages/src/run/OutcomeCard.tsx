import type { Outcome, RunView } from "airflow-stream-client"
import { AgentSteps } from "../components/AgentSteps.js"
import { toAgentSteps } from "../components/agentSteps.js"
import { describeFailure, describeMissingOutcome, describeTask } from "./failureText.js"
import { getRunningProgress } from "./taskProgress.js"
import type { TaskRow } from "./taskRows.js"

interface Props {
  readonly view: RunView
  readonly isOver: boolean
  readonly rows: readonly TaskRow[]
}

/** The result, or why there is none. */
export function OutcomeCard({ view, isOver, rows }: Props) {
  const { outcome } = view
  return (
    <section className="card outcome" data-outcome={outcome.kind} aria-labelledby="outcome">
      <div className="row spread">
        <h2 id="outcome">{TITLES[outcome.kind]}</h2>
        {outcome.kind !== "pending" && !isOver && <span className="aside">{describeProgress(rows)}</span>}
      </div>
      <AgentSteps steps={toAgentSteps(view)} />
      <div aria-live="polite">
        {outcome.kind === "pending" ? (
          <PendingOutcome view={view} />
        ) : (
          <FinalOutcome outcome={outcome} isOver={isOver} />
        )}
      </div>
    </section>
  )
}

const TITLES: Record<Outcome["kind"], string> = {
  pending: "Waiting for the result",
  result: "Result",
  failure: "Failed",
  none: "No result",
}

function describeProgress(rows: readonly TaskRow[]): string {
  const open = rows.filter(
    (row) => row.state !== null && !["success", "failed", "skipped", "upstream_failed", "removed"].includes(row.state),
  )
  return open.length > 0 && open.every((row) => row.isTeardown) ? "Teardown tasks are running" : "The run continues"
}

function PendingOutcome({ view }: { view: RunView }) {
  const names = view.resultTasks
  return (
    <>
      <p className="faint">
        {names.length === 0
          ? "This DAG has no result task. The stream ends with the run."
          : `Result ${names.length === 1 ? "task" : "tasks"}: ${names.join(", ")}`}
      </p>
      {getRunningProgress(view).map(([task, { fraction, text }]) => (
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

function FinalOutcome({ outcome, isOver }: { outcome: Exclude<Outcome, { kind: "pending" }>; isOver: boolean }) {
  if (outcome.kind === "none") return <p>{describeMissingOutcome(outcome)}</p>
  if (outcome.kind === "failure") {
    const { failure } = outcome
    return (
      <>
        <p>{describeFailure(failure)}</p>
        {failure.predicted && !isOver && <p className="faint">Airflow has not updated the downstream tasks yet.</p>}
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
          The return value of {describeTask(task)} is too large to show ({reference.bytes.toLocaleString()} bytes). View
          it in Airflow as an XCom.
        </p>
      ))}
      {outcome.withheld && <p>You do not have permission to read the XComs of this run.</p>}
    </>
  )
}

function Value({ value }: { value: unknown }) {
  const isText = typeof value === "string"
  return (
    <pre
      className={isText ? "text" : ""}
      // biome-ignore lint/a11y/noNoninteractiveTabindex: a scrollable element must be reachable by keyboard
      tabIndex={0}
    >
      {isText ? value : JSON.stringify(value, null, 2)}
    </pre>
  )
}
