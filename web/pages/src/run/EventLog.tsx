import type { Frame } from "airflow-stream-client"
import { StateLabel } from "../components/StateLabel.js"
import { formatTimeOfDay } from "../components/time.js"
import { describeFailure } from "./failureText.js"

interface Props {
  readonly frames: readonly Frame[]
  /** Number of earlier frames, which are not shown. */
  readonly dropped: number
}

/** The last frames since the page was opened, newest first. */
export function EventLog({ frames, dropped }: Props) {
  return (
    <section className="card" aria-labelledby="log">
      <h2 id="log">Event log</h2>
      <ol
        className="log"
        aria-labelledby="log"
        // biome-ignore lint/a11y/noNoninteractiveTabindex: a scrollable element must be reachable by keyboard
        tabIndex={0}
      >
        {frames
          .map((frame, index) => (
            // biome-ignore lint/suspicious/noArrayIndexKey: with those dropped, the index of a frame never changes
            <li key={dropped + index}>
              <LogEntry frame={frame} />
            </li>
          ))
          .reverse()}
      </ol>
    </section>
  )
}

function LogEntry({ frame }: { frame: Frame }) {
  return (
    <>
      <time>{"at" in frame && typeof frame.at === "string" ? formatTimeOfDay(frame.at) : ""}</time>
      <span>
        <FrameText frame={frame} />
      </span>
    </>
  )
}

function FrameText({ frame }: { frame: Frame }) {
  switch (frame.type) {
    case "task":
      return (
        <>
          <b>
            {frame.task_id}
            {frame.map_index >= 0 && `[${frame.map_index}]`}
          </b>{" "}
          {typeof frame.iteration === "number" && <span className="faint">Iteration {frame.iteration} </span>}
          <StateLabel state={frame.state} />
          {frame.try_number > 1 && <span className="faint"> Try {frame.try_number}</span>}
        </>
      )
    case "run":
      return (
        <>
          <b>Run</b> <StateLabel state={frame.state} />
        </>
      )
    case "input":
      return (
        <>
          <b>{frame.task_id}</b> asks{frame.subject != null && `: ${frame.subject}`}
        </>
      )
    case "input_answered":
      return (
        <>
          <b>{frame.task_id}</b> was answered{frame.chosen_options != null && `: ${frame.chosen_options.join(", ")}`}
        </>
      )
    case "result":
      return <b>Result available</b>
    case "failure":
      return <b>{describeFailure(frame)}</b>
    case "reset":
      return <>Earlier events no longer apply ({frame.reason.replaceAll("_", " ")})</>
    case "snapshot":
      return <span className="faint">Current state: {frame.run.state ?? "no status"}</span>
    case "resumed":
      return <span className="faint">Reconnected. No events were lost.</span>
    case "end":
      return <span className="faint">End of the stream</span>
    default:
      return <span className="faint">{frame.type.replaceAll("_", " ")}</span>
  }
}
