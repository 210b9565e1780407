import { type Current, NOTHING_KNOWN, type RunStream, type RunView, type StreamState } from "airflow-stream-client"
import { useCallback, useEffect, useMemo, useState } from "react"
import { signInNeeded, useSession } from "../session.js"
import { theClient } from "../streams.js"
import { reasonOf } from "../words.js"
import { type Answer, ask, type Conversation, changed, historyOf, type Turn, textOf } from "./conversation.js"
import { Keeper, load, makeId } from "./store.js"

export interface Chat {
  readonly turns: Conversation
  /** How the connection is doing, while an answer is on its way. */
  readonly state: StreamState | null
  /** What is known of the run that answers. */
  readonly view: RunView
  send(message: string): void
  retry(turn: Turn): void
  stop(): void
  clear(): void
}

/** A conversation with a DAG. What is on its way when the page is left goes on when it is opened again. */
export function useChat(dagId: string): Chat {
  const { generation } = useSession()
  const [turns, setTurns] = useState(() => load(dagId))
  const [current, setCurrent] = useState<Pick<Current, "state" | "view"> | null>(null)
  const open = turns.find((turn) => turn.answer.kind === "coming")

  useKept(dagId, turns)

  // biome-ignore lint/correctness/useExhaustiveDependencies: the stream of a turn is opened once, and again after a sign-in
  useEffect(() => {
    if (open === undefined) return
    const change = (next: Partial<Turn>) => setTurns((before) => changed(before, open.id, next))
    const stream = streamOf(dagId, open, turns)
    stream.started.then(({ runId }) => change({ runId })).catch(() => {})
    const unsubscribe = stream.subscribe((now) => {
      setCurrent({ state: now.state, view: now.view })
      if (now.error?.code === "unauthenticated") signInNeeded(now.error.message)
      else change({ answer: answerOf(now), bookmark: stream.bookmark })
    })
    return () => {
      unsubscribe()
      stream.close()
      setCurrent(null)
    }
  }, [dagId, open?.id, generation])

  const send = useCallback((message: string) => setTurns((before) => [...before, ask(message, makeId)]), [])
  const retry = (turn: Turn) =>
    setTurns((before) => [...before.filter((one) => one.id !== turn.id), ask(turn.message, makeId)])
  const stop = () => {
    if (open === undefined) return
    const stopped: Answer = { kind: "stopped", text: open.answer.text }
    setTurns((before) => changed(before, open.id, { answer: stopped, bookmark: null }))
    if (open.runId !== null)
      theClient()
        .cancel(dagId, open.runId)
        .catch(() => {})
  }
  return {
    turns,
    state: open === undefined ? null : (current?.state ?? "connecting"),
    view: current?.view ?? open?.bookmark?.view ?? NOTHING_KNOWN,
    send,
    retry,
    stop,
    clear: () => setTurns([]),
  }
}

/** Have a conversation survive a reload. */
function useKept(dagId: string, turns: Conversation): void {
  // biome-ignore lint/correctness/useExhaustiveDependencies: what was loaded, and not what has come of it
  const keeper = useMemo(() => new Keeper(dagId, turns), [dagId])
  useEffect(() => keeper.keep(turns), [keeper, turns])
  useEffect(() => {
    // A page that is not seen any more may be dropped without another word; some browsers send `pagehide` alone.
    const events = [
      [window, "pagehide"],
      [document, "visibilitychange"],
    ] as const
    for (const [target, event] of events) target.addEventListener(event, keeper.write)
    return () => {
      for (const [target, event] of events) target.removeEventListener(event, keeper.write)
      keeper.write()
    }
  }, [keeper])
}

/** Open the stream of an answer: where it was, if it was begun before. */
function streamOf(dagId: string, turn: Turn, turns: Conversation): RunStream {
  if (turn.runId !== null) {
    return theClient().watch(dagId, turn.runId, turn.bookmark === null ? {} : { bookmark: turn.bookmark })
  }
  const conf = { message: turn.message, history: historyOf(turns, turn.id) }
  return theClient().run(dagId, conf, { idempotencyKey: turn.key })
}

function answerOf({ state, view, error }: Current): Answer {
  const text = textOf(view)
  const { outcome } = view
  if (outcome.kind === "failure") return { kind: "failed", text, reason: reasonOf(outcome.failure) }
  if (outcome.kind === "none")
    return { kind: "failed", text, reason: "The run has ended, and none of its tasks answers." }
  if (outcome.kind === "result") {
    if (outcome.withheld) return { kind: "failed", text, reason: "You may see this run, and not what it answers." }
    return { kind: "complete", text }
  }
  if (state === "failed") return { kind: "failed", text, reason: error?.message ?? "The answer can’t be followed." }
  return { kind: "coming", text }
}
