import { EMPTY_VIEW, type Frame, type RunStatus } from "airflow-stream-client"
import { useEffect, useRef, useState } from "react"
import { getClient } from "../api/streamClient.js"
import { requireSignIn, useSignInState } from "../session/signInState.js"

export interface WatchedRun extends RunStatus {
  /** All frames so far, oldest first, except the output of tasks, which is in the view. */
  readonly frames: readonly Frame[]
}

const INITIAL: WatchedRun = { state: "connecting", view: EMPTY_VIEW, error: null, frames: [] }

/** Stream a run until its end. After a sign-in the stream resumes from its bookmark. */
export function useRun(dagId: string, runId: string): WatchedRun {
  const { signInCount } = useSignInState()
  const [watched, setWatched] = useState<WatchedRun>(INITIAL)
  const latest = useRef<WatchedRun>(INITIAL)
  const bookmark = useRef<{ cursor: string; view: RunStatus["view"] } | null>(null)

  // biome-ignore lint/correctness/useExhaustiveDependencies: a sign-in reopens the stream
  useEffect(() => {
    const resumeFrom = bookmark.current === null ? {} : { bookmark: bookmark.current }
    const stream = getClient().watch(dagId, runId, { until: "run", ...resumeFrom })
    const update = (status: RunStatus, newFrames: readonly Frame[]) => {
      const events = newFrames.filter(({ type }) => type !== "chunk" && type !== "progress")
      const before = latest.current.frames
      latest.current = { ...status, frames: events.length > 0 ? [...before, ...events] : before }
      bookmark.current = stream.bookmark ?? bookmark.current
      setWatched(latest.current)
      if (status.error?.code === "unauthenticated") requireSignIn(status.error.message)
    }
    update(stream.current, [])
    const unsubscribe = stream.subscribe(update)
    return () => {
      unsubscribe()
      stream.close()
    }
  }, [dagId, runId, signInCount])
  return watched
}
