import type { StreamState } from "airflow-stream-client"
import { wordsFor } from "../streams.js"

/** How the connection is doing; it is told to screen readers when it changes. */
export function Connection({ state }: { state: StreamState }) {
  return (
    <span className="connection" data-connection={state} role="status">
      {wordsFor(state)}
    </span>
  )
}
