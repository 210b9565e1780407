import { EMPTY_VIEW, type Frame, type RunStatus, type Waiting } from "airflow-stream-client"
import { useEffect, useRef, useState } from "react"
import { getClient } from "../api/streamClient.js"
import { Throttle } from "../components/throttle.js"
import { requireSignIn, useSignInState } from "../session/signInState.js"

export interface WatchedRun extends RunStatus {
  /** The last frames, oldest first, except the output of tasks, which is in the view. */
  readonly frames: readonly Frame[]
  /** Why the run does not proceed; `null` if it does, or the server knows no reason. */
  readonly waiting: Waiting | null
  /** Number of frames before them. */
  readonly droppedFrames: number
}

/** How many frames are kept for the event log. */
export const MAX_FRAMES = 500

/** The page renders at most this often. With thousands of tasks, each rendering takes a while. */
const RENDER_INTERVAL_MS = 100
const RENDER_INTERVAL_OF_LARGE_DAGS_MS = 1_000
const LARGE_DAG = 300

const INITIAL: WatchedRun = {
  state: "connecting",
  view: EMPTY_VIEW,
  error: null,
  frames: [],
  droppedFrames: 0,
  waiting: null,
}

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
    const throttle = new Throttle(() => {
      setWatched(latest.current)
      const isLarge = Object.keys(latest.current.view.tasks).length > LARGE_DAG
      return isLarge ? RENDER_INTERVAL_OF_LARGE_DAGS_MS : RENDER_INTERVAL_MS
    })
    const update = (status: RunStatus, newFrames: readonly Frame[]) => {
      const events = newFrames.filter((frame) => !("index" in frame))
      latest.current = addFrames(latest.current, status, events)
      bookmark.current = stream.bookmark ?? bookmark.current
      throttle.request()
      if (status.error?.code === "unauthenticated") requireSignIn(status.error.message)
    }
    update(stream.current, [])
    const unsubscribe = stream.subscribe(update)
    return () => {
      unsubscribe()
      throttle.cancel()
      stream.close()
    }
  }, [dagId, runId, signInCount])
  return watched
}

/** Return the run after new frames. */
export function addFrames(before: WatchedRun, status: RunStatus, events: readonly Frame[]): WatchedRun {
  const { state, view, error } = status
  const all = events.length > 0 ? [...before.frames, ...events] : before.frames
  const dropped = Math.max(0, all.length - MAX_FRAMES)
  const frames = dropped > 0 ? all.slice(dropped) : all
  return {
    state,
    view,
    error,
    waiting: nextWaiting(before.waiting, events),
    frames,
    droppedFrames: before.droppedFrames + dropped,
  }
}

/** Frames after which the last reason does not hold any more (`docs/protocol.md`). */
const ENDS_WAITING: ReadonlySet<string> = new Set(["run", "task", "snapshot", "resumed", "reset", "end"])

function nextWaiting(before: Waiting | null, events: readonly Frame[]): Waiting | null {
  let waiting = before
  for (const event of events) {
    if (event.type === "waiting") waiting = event.reason === null ? null : event
    if (ENDS_WAITING.has(event.type)) waiting = null
  }
  return waiting
}
