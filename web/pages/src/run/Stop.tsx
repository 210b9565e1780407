import { useState } from "react"
import { messageOf } from "../server.js"
import { theClient } from "../streams.js"

/** Stops the run, when asked twice. */
export function Stop({ dagId, runId }: { dagId: string; runId: string }) {
  const [asked, setAsked] = useState(false)
  const [told, setTold] = useState<string | null>(null)

  async function stop() {
    setTold("Stopping …")
    try {
      await theClient().cancel(dagId, runId)
    } catch (error) {
      setTold(messageOf(error))
    }
  }

  if (told !== null) return <span role="status">{told}</span>
  if (!asked) {
    return (
      <button type="button" className="quiet" onClick={() => setAsked(true)}>
        Stop the run
      </button>
    )
  }
  return (
    <span className="row">
      <button type="button" className="danger" onClick={() => void stop()}>
        Set it to failed
      </button>
      <button type="button" className="quiet" onClick={() => setAsked(false)}>
        Let it go on
      </button>
    </span>
  )
}
