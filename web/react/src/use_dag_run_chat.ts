import type { Client } from "airflow-stream-client"
import { useMemo, useRef, useSyncExternalStore } from "react"
import { Chat, type ChatOptions, type ChatTurn } from "./chat.js"

/** A conversation, and what can be done. */
export interface DagRunChat {
  readonly turns: readonly ChatTurn[]
  /** Whether an answer is on its way; meanwhile `send` does nothing. */
  readonly busy: boolean
  readonly send: (question: string) => void
  /** Stops the run that is answering. */
  readonly stop: () => Promise<void>
  /** Asks the last question again, if it was not answered; or goes on with its run, if that was lost from sight. */
  readonly retry: () => void
  readonly clear: () => void
}

/**
 * Talks with a DAG: each question triggers a run with `conf = { message, history }`, and what its tasks say from inside
 * appears as it comes. With a `storage` the conversation survives a reload, in the middle of an answer, too.
 *
 * @param options taken from the first rendering of a DAG
 */
export function useDagRunChat(client: Client, dagId: string, options: ChatOptions = {}): DagRunChat {
  const first = useRef(options)
  const chat = useMemo(() => new Chat(client, dagId, first.current), [client, dagId])
  const turns = useSyncExternalStore(chat.subscribe, chat.getTurns, chat.getTurns)
  const busy = turns.some(({ status }) => status === "asking" || status === "answering")
  return useMemo(
    () => ({ turns, busy, send: chat.send, stop: chat.stop, retry: chat.retry, clear: chat.clear }),
    [turns, busy, chat],
  )
}
