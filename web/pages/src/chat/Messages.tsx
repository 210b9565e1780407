import type { RunView } from "airflow-stream-client"
import { useEffect, useRef } from "react"
import { State } from "../parts/State.js"
import { runPath } from "../place.js"
import { progressOf } from "../progress.js"
import type { Conversation, Turn } from "./conversation.js"

/** How near to its end a page must be to be kept there, in pixels. */
const NEAR = 160

interface Props {
  readonly dagId: string
  readonly turns: Conversation
  readonly view: RunView
  onRetry(turn: Turn): void
}

/** What was said. */
export function Messages({ dagId, turns, view, onRetry }: Props) {
  const end = useRef<HTMLDivElement>(null)
  const text = turns.at(-1)?.answer.text

  // biome-ignore lint/correctness/useExhaustiveDependencies: whatever is said moves the end
  useEffect(() => {
    const below = document.documentElement.scrollHeight - window.scrollY - window.innerHeight
    if (below < NEAR) end.current?.scrollIntoView({ block: "end" })
  }, [text, turns.length])

  if (turns.length === 0) {
    return <p className="empty">Ask something. Each answer is a run of {dagId}, told as it comes.</p>
  }
  return (
    <div className="messages" role="log" aria-label="Conversation" aria-busy={turns.at(-1)?.answer.kind === "coming"}>
      {turns.map((turn) => (
        <article key={turn.id} className="turn">
          <h2 className="unseen">You asked</h2>
          <p className="said by-user">{turn.message}</p>
          <h2 className="unseen">{dagId} answered</h2>
          <Answered dagId={dagId} turn={turn} view={view} onRetry={onRetry} />
        </article>
      ))}
      <div ref={end} className="end" />
    </div>
  )
}

function Answered({ dagId, turn, view, onRetry }: Omit<Props, "turns"> & { turn: Turn }) {
  const { answer, runId } = turn
  return (
    <div className="said by-dag" data-answer={answer.kind}>
      {answer.text !== "" && <p className="text">{answer.text}</p>}
      {answer.kind === "coming" && <Steps view={view} isSilent={answer.text === ""} />}
      {answer.kind === "failed" && (
        <p className="problem" role="alert">
          {answer.reason}
        </p>
      )}
      {answer.kind === "stopped" && <p className="faint">Stopped.</p>}
      <p className="below">
        {(answer.kind === "failed" || answer.kind === "stopped") && (
          <button type="button" className="quiet" onClick={() => onRetry(turn)}>
            Ask again
          </button>
        )}
        {runId !== null && (
          <a className="faint" href={runPath(dagId, runId)}>
            How it came about
          </a>
        )}
      </p>
    </div>
  )
}

/** What the run is doing while it has yet to answer. */
function Steps({ view, isSilent }: { view: RunView; isSilent: boolean }) {
  const tasks = Object.values(view.tasks)
    .filter((task) => task.state !== null && task.map_index < 1)
    .sort((one, other) => (one.start_date ?? "~").localeCompare(other.start_date ?? "~"))
  return (
    <div className="steps">
      {isSilent && <span className="thinking">{tasks.length === 0 ? "Waiting for Airflow" : "Working"}</span>}
      {tasks.length > 0 && (
        <ul>
          {tasks.map((task) => (
            <li key={task.task_id}>
              {task.task_id} <State state={task.state} />
            </li>
          ))}
        </ul>
      )}
      {progressOf(view).map(([task, { fraction, text }]) => (
        <label key={task} className="progress">
          {text ?? task}
          <progress max={1} {...(fraction == null ? {} : { value: fraction })} />
        </label>
      ))}
    </div>
  )
}
