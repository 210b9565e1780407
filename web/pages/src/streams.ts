// Streams as React wants them: open while something shows them, taken up where they were after a sign-in.

import {
  type Client,
  type Current,
  createClient,
  type Frame,
  NOTHING_KNOWN,
  type StreamState,
} from "airflow-stream-client"
import { useEffect, useRef, useState } from "react"
import { sharedName, signInNeeded, useSession } from "./session.js"

let made: { name: string; client: Client } | null = null

/** Return the client of this page; all tabs of who has signed in have one connection together. */
export function theClient(): Client {
  const name = sharedName()
  if (made?.name !== name) {
    made?.client.close()
    made = { name, client: createClient({ shareAs: name }) }
  }
  return made.client
}

export interface WatchedRun extends Current {
  /** What has happened, oldest first: all frames but what tasks say from inside, which the view has. */
  readonly frames: readonly Frame[]
}

/** Follow a run to its end. */
export function useRun(dagId: string, runId: string): WatchedRun {
  const { generation } = useSession()
  const [watched, setWatched] = useState<WatchedRun>(UNKNOWN)
  const last = useRef<WatchedRun>(UNKNOWN)
  const bookmark = useRef<{ cursor: string; view: Current["view"] } | null>(null)

  // biome-ignore lint/correctness/useExhaustiveDependencies: who signs in has the stream go on
  useEffect(() => {
    const from = bookmark.current === null ? {} : { bookmark: bookmark.current }
    const stream = theClient().watch(dagId, runId, { until: "run", ...from })
    const show = (current: Current, frames: readonly Frame[]) => {
      const happened = frames.filter(({ type }) => type !== "chunk" && type !== "progress")
      const before = last.current.frames
      last.current = { ...current, frames: happened.length > 0 ? [...before, ...happened] : before }
      bookmark.current = stream.bookmark ?? bookmark.current
      setWatched(last.current)
      if (current.error?.code === "unauthenticated") signInNeeded(current.error.message)
    }
    show(stream.current, [])
    const unsubscribe = stream.subscribe(show)
    return () => {
      unsubscribe()
      stream.close()
    }
  }, [dagId, runId, generation])
  return watched
}

const UNKNOWN: WatchedRun = { state: "connecting", view: NOTHING_KNOWN, error: null, frames: [] }

/** Return what a connection's state means, in words for people. */
export function wordsFor(state: StreamState): string {
  return WORDS[state]
}

const WORDS: Record<StreamState, string> = {
  connecting: "Connecting …",
  live: "Live",
  stale: "Nothing heard",
  resuming: "Reconnecting …",
  ended: "Over",
  failed: "Stopped",
  closed: "Closed",
}
