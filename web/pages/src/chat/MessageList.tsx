import type { RunView } from "airflow-stream-client"
import { useEffect, useRef } from "react"
import { AgentSteps } from "../components/AgentSteps.js"
import { InputForms } from "../components/InputForms.js"
import { StateLabel } from "../components/StateLabel.js"
import { buildRunPagePath } from "../routes.js"
import { getRunningProgress } from "../run/taskProgress.js"
import type { Conversation, Turn } from "./conversation.js"

/** A page this close to its end scrolls with new text. */
const FOLLOW_DISTANCE_PX = 160

interface Props {
  readonly dagId: string
  readonly turns: Conversation
  readonly view: RunView
  onRetry(turn: Turn): void
}

export function MessageList({ dagId, turns, view, onRetry }: Props) {
  const end = useRef<HTMLDivElement>(null)
  const text = turns.at(-1)?.answer.text

  // biome-ignore lint/correctness/useExhaustiveDependencies: new text moves the end
  useEffect(() => {
    const below = document.documentElement.scrollHeight - window.scrollY - window.innerHeight
    if (below < FOLLOW_DISTANCE_PX) end.current?.scrollIntoView({ block: "end" })
  }, [text, turns.length])

  if (turns.length === 0) {
    return (
      <p className="empty">Ask a question. Each question triggers a run of {dagId}, and its answer is streamed here.</p>
    )
  }
  return (
    <div className="messages" role="log" aria-label="Conversation" aria-busy={turns.at(-1)?.answer.kind === "coming"}>
      {turns.map((turn) => (
        <article key={turn.id} className="turn">
          <h2 className="visually-hidden">You</h2>
          <p className="message by-user">{turn.message}</p>
          <h2 className="visually-hidden">{dagId}</h2>
          <AnswerMessage dagId={dagId} turn={turn} view={view} onRetry={onRetry} />
        </article>
      ))}
      <div ref={end} className="end" />
    </div>
  )
}

function AnswerMessage({ dagId, turn, view, onRetry }: Omit<Props, "turns"> & { turn: Turn }) {
  const { answer, runId } = turn
  return (
    <div className="message by-dag" data-answer={answer.kind}>
      <AgentSteps steps={turn.steps ?? []} />
      {answer.text !== "" && <p className="text">{answer.text}</p>}
      {answer.kind === "coming" && <RunSteps view={view} isWaiting={answer.text === ""} />}
      {answer.kind === "coming" && <InputForms view={view} />}
      {answer.kind === "failed" && (
        <p className="problem" role="alert">
          {answer.reason}
        </p>
      )}
      {answer.kind === "none" && <p className="faint">{answer.reason}</p>}
      {answer.kind === "stopped" && <p className="faint">Stopped.</p>}
      <p className="below">
        {(answer.kind === "failed" || answer.kind === "none" || answer.kind === "stopped") && (
          <button type="button" className="quiet" onClick={() => onRetry(turn)}>
            Retry
          </button>
        )}
        {runId !== null && (
          <a className="faint" href={buildRunPagePath(dagId, runId)}>
            View run
          </a>
        )}
      </p>
    </div>
  )
}

/** The tasks of the run and their progress, while the answer is in progress. */
function RunSteps({ view, isWaiting }: { view: RunView; isWaiting: boolean }) {
  const tasks = Object.values(view.tasks)
    .filter((task) => task.state !== null && task.map_index < 1)
    .sort((one, other) => (one.start_date ?? "~").localeCompare(other.start_date ?? "~"))
  return (
    <div className="steps">
      {isWaiting && <span className="thinking">{tasks.length === 0 ? "Waiting for Airflow" : "Working"}</span>}
      {tasks.length > 0 && (
        <ul>
          {tasks.map((task) => (
            <li key={task.task_id}>
              {task.task_id} <StateLabel state={task.state} />
            </li>
          ))}
        </ul>
      )}
      {getRunningProgress(view).map(([task, { fraction, text }]) => (
        <label key={task} className="progress">
          {text ?? task}
          <progress max={1} {...(fraction == null ? {} : { value: fraction })} />
        </label>
      ))}
    </div>
  )
}
