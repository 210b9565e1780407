import type { StreamState } from "airflow-stream-client"

/** The state of the connection. Screen readers announce changes. */
export function ConnectionState({ state }: { state: StreamState }) {
  return (
    <span className="connection" data-connection={state} role="status">
      {LABELS[state]}
    </span>
  )
}

const LABELS: Record<StreamState, string> = {
  connecting: "Connecting…",
  live: "Live",
  stale: "No response",
  resuming: "Reconnecting…",
  ended: "Ended",
  failed: "Disconnected",
  closed: "Closed",
}
