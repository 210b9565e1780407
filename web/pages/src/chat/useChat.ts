import { EMPTY_VIEW, type RunStatus, type RunStream, type RunView, type StreamState } from "airflow-stream-client"
import { useCallback, useEffect, useMemo, useState } from "react"
import { getClient } from "../api/streamClient.js"
import { toAgentSteps } from "../components/agentSteps.js"
import { requireSignIn, useSignInState } from "../session/signInState.js"
import {
  type Answer,
  buildHistory,
  type Conversation,
  createTurn,
  type Turn,
  toAnswer,
  updateTurn,
} from "./conversation.js"
import { ConversationSaver, createId, loadConversation } from "./conversationStorage.js"

export interface Chat {
  readonly turns: Conversation
  /** State of the stream; `null` if no answer is in progress. */
  readonly state: StreamState | null
  /** The run of the answer in progress. */
  readonly view: RunView
  send(message: string): void
  retry(turn: Turn): void
  stop(): void
  clear(): void
}

/** A conversation with a DAG. An answer in progress continues after a reload. */
export function useChat(dagId: string): Chat {
  const { signInCount: generation } = useSignInState()
  const [turns, setTurns] = useState(() => loadConversation(dagId))
  const [current, setCurrent] = useState<Pick<RunStatus, "state" | "view"> | null>(null)
  const openTurn = turns.find((turn) => turn.answer.kind === "coming")

  useSavedConversation(dagId, turns)

  // biome-ignore lint/correctness/useExhaustiveDependencies: the stream of a turn is opened once, and again after a sign-in
  useEffect(() => {
    if (openTurn === undefined) return
    const change = (next: Partial<Turn>) => setTurns((before) => updateTurn(before, openTurn.id, next))
    const stream = openAnswerStream(dagId, openTurn, turns)
    stream.started.then(({ runId }) => change({ runId })).catch(() => {})
    const unsubscribe = stream.subscribe((status) => {
      setCurrent({ state: status.state, view: status.view })
      if (status.error?.code === "unauthenticated") requireSignIn(status.error.message)
      else change({ answer: toAnswer(status), steps: toAgentSteps(status.view), bookmark: stream.bookmark })
    })
    return () => {
      unsubscribe()
      stream.close()
      setCurrent(null)
    }
  }, [dagId, openTurn?.id, generation])

  const send = useCallback((message: string) => setTurns((before) => [...before, createTurn(message, createId)]), [])
  const retry = (turn: Turn) =>
    setTurns((before) => [...before.filter((one) => one.id !== turn.id), createTurn(turn.message, createId)])
  const stop = () => {
    if (openTurn === undefined) return
    const stopped: Answer = { kind: "stopped", text: openTurn.answer.text }
    setTurns((before) => updateTurn(before, openTurn.id, { answer: stopped, bookmark: null }))
    if (openTurn.runId !== null)
      getClient()
        .cancel(dagId, openTurn.runId)
        .catch(() => {})
  }
  return {
    turns,
    state: openTurn === undefined ? null : (current?.state ?? "connecting"),
    view: current?.view ?? openTurn?.bookmark?.view ?? EMPTY_VIEW,
    send,
    retry,
    stop,
    clear: () => setTurns([]),
  }
}

/** Store the conversation, so that it survives a reload. */
function useSavedConversation(dagId: string, turns: Conversation): void {
  // biome-ignore lint/correctness/useExhaustiveDependencies: the loaded turns, not later ones
  const saver = useMemo(() => new ConversationSaver(dagId, turns), [dagId])
  useEffect(() => saver.update(turns), [saver, turns])
  useEffect(() => {
    // A hidden page may be discarded without a further event; some browsers only send `pagehide`.
    const events = [
      [window, "pagehide"],
      [document, "visibilitychange"],
    ] as const
    for (const [target, event] of events) target.addEventListener(event, saver.save)
    return () => {
      for (const [target, event] of events) target.removeEventListener(event, saver.save)
      saver.save()
    }
  }, [saver])
}

/** Open the stream of an answer; resume it if the run was triggered before. */
function openAnswerStream(dagId: string, turn: Turn, turns: Conversation): RunStream {
  if (turn.runId !== null) {
    return getClient().watch(dagId, turn.runId, turn.bookmark === null ? {} : { bookmark: turn.bookmark })
  }
  const conf = { message: turn.message, history: buildHistory(turns, turn.id) }
  return getClient().run(dagId, conf, { idempotencyKey: turn.key })
}
