import type { Client } from "airflow-stream-client"
import { useMemo, useRef, useSyncExternalStore } from "react"
import { Chat, type ChatOptions } from "./chat.js"
import type { ChatTurn } from "./chat_turn.js"

/** A conversation, and the actions on it. */
export interface DagRunChat {
  readonly turns: readonly ChatTurn[]
  /** Whether a question is being answered. Meanwhile, `send` does nothing. */
  readonly busy: boolean
  readonly send: (question: string) => void
  /** Cancel the run of the current question. */
  readonly stop: () => Promise<void>
  /** Ask the last question again if it was not answered. If only its stream failed, continue with the same run. */
  readonly retry: () => void
  readonly clear: () => void
}

/**
 * Chat with a DAG: each question triggers a run with `conf = { message, history }`, and the output of its tasks is shown as
 * it arrives. With a `storage` the conversation survives a reload, also in the middle of an answer.
 *
 * @param options those of the first rendering are used
 */
export function useDagRunChat(client: Client, dagId: string, options: ChatOptions = {}): DagRunChat {
  const firstOptions = useRef(options)
  const chat = useMemo(() => new Chat(client, dagId, firstOptions.current), [client, dagId])
  const turns = useSyncExternalStore(chat.subscribe, chat.getTurns, chat.getTurns)
  const busy = turns.some(({ status }) => status === "asking" || status === "answering")
  return useMemo(
    () => ({ turns, busy, send: chat.send, stop: chat.stop, retry: chat.retry, clear: chat.clear }),
    [turns, busy, chat],
  )
}
