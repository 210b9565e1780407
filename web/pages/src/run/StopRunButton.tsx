import { useState } from "react"
import { messageOfError } from "../api/api.js"
import { getClient } from "../api/streamClient.js"

/** Stops the run, after a confirmation. */
export function StopRunButton({ dagId, runId }: { dagId: string; runId: string }) {
  const [isConfirming, setIsConfirming] = useState(false)
  const [status, setStatus] = useState<string | null>(null)

  async function stop() {
    setStatus("Stopping…")
    try {
      await getClient().cancel(dagId, runId)
    } catch (error) {
      setStatus(`Could not stop the run. ${messageOfError(error)}`)
    }
  }

  if (status !== null) return <span role="status">{status}</span>
  if (!isConfirming) {
    return (
      <button type="button" className="quiet" onClick={() => setIsConfirming(true)}>
        Stop run
      </button>
    )
  }
  return (
    <span className="row">
      <button type="button" className="danger" onClick={() => void stop()}>
        Mark as failed
      </button>
      <button type="button" className="quiet" onClick={() => setIsConfirming(false)}>
        Keep running
      </button>
    </span>
  )
}
