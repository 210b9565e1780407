import type { Frame } from "airflow-stream-client"
import { State } from "../parts/State.js"
import { clock } from "../time.js"
import { reasonOf } from "../words.js"

const MAX_LINES = 500

/** What has happened since the page was opened, the youngest first. */
export function Log({ frames: lines }: { frames: readonly Frame[] }) {
  return (
    <section className="card" aria-labelledby="log">
      <h2 id="log">What happened</h2>
      <ol
        className="log"
        aria-labelledby="log"
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by keyboard, too
        tabIndex={0}
      >
        {lines
          .slice(-MAX_LINES)
          .map((frame, index) => (
            // biome-ignore lint/suspicious/noArrayIndexKey: lines are only added, so that the place of one never changes
            <li key={Math.max(0, lines.length - MAX_LINES) + index}>
              <Line frame={frame} />
            </li>
          ))
          .reverse()}
      </ol>
    </section>
  )
}

function Line({ frame }: { frame: Frame }) {
  return (
    <>
      <time>{"at" in frame && typeof frame.at === "string" ? clock(frame.at) : ""}</time>
      <span>
        <What frame={frame} />
      </span>
    </>
  )
}

function What({ frame }: { frame: Frame }) {
  switch (frame.type) {
    case "task":
      return (
        <>
          <b>
            {frame.task_id}
            {frame.map_index >= 0 && `[${frame.map_index}]`}
          </b>{" "}
          <State state={frame.state} />
          {frame.try_number > 1 && <span className="faint"> try {frame.try_number}</span>}
        </>
      )
    case "run":
      return (
        <>
          <b>The run</b> <State state={frame.state} />
        </>
      )
    case "result":
      return <b>The result is there</b>
    case "failure":
      return <b>{reasonOf(frame)}</b>
    case "reset":
      return <>What was told is void ({frame.reason.replaceAll("_", " ")}); here is how it stands.</>
    case "snapshot":
      return <span className="faint">How it stood: {frame.run.state ?? "unknown"}</span>
    case "resumed":
      return <span className="faint">The connection was made again; nothing is missing.</span>
    case "end":
      return <span className="faint">The end of the stream</span>
    default:
      return <span className="faint">{frame.type.replaceAll("_", " ")}</span>
  }
}
