import { useEffect, useState } from "react"
import type { DagList } from "../api/api.js"
import { useFetch } from "../api/useFetch.js"
import { ConnectionState } from "../components/ConnectionState.js"
import { PageLayout } from "../components/PageLayout.js"
import { useSignInState } from "../session/signInState.js"
import { MessageForm } from "./MessageForm.js"
import { MessageList } from "./MessageList.js"
import { useChat } from "./useChat.js"
import "../styles/chat.css"

const CHAT_TAG = "chat"

/** A chat with a DAG that has the tag. */
export function ChatPage() {
  const { data: value, error } = useFetch<DagList>(`/api/v2/stream/dags?tag=${CHAT_TAG}`)
  const { isSignInRequired: needed } = useSignInState()
  const [selected, setSelected] = useState(() => new URLSearchParams(location.search).get("dag_id"))
  const dags = value?.dags ?? []
  const dag = dags.find((one) => one.dag_id === selected) ?? dags[0]

  useEffect(() => {
    if (dag !== undefined) history.replaceState(null, "", `/chat?dag_id=${encodeURIComponent(dag.dag_id)}`)
  }, [dag])

  return (
    <PageLayout title="Chat" current="chat">
      <div className="chat">
        {dag === undefined ? (
          <>
            <h1>Chat</h1>
            {!needed && (
              <p className="card" role="status">
                {error ?? (value === null ? "Loading DAGs…" : NO_CHAT_DAG)}
              </p>
            )}
          </>
        ) : (
          <Conversation key={dag.dag_id} dagId={dag.dag_id} isPaused={dag.is_paused}>
            <label className="picker">
              <span className="visually-hidden">DAG</span>
              <select value={dag.dag_id} onChange={(event) => setSelected(event.target.value)}>
                {dags.map((one) => (
                  <option key={one.dag_id}>{one.dag_id}</option>
                ))}
              </select>
            </label>
            {dag.description !== null && <span className="faint description">{dag.description}</span>}
          </Conversation>
        )}
      </div>
    </PageLayout>
  )
}

const NO_CHAT_DAG = `No DAG that you can read has the tag “${CHAT_TAG}”. Add it to a DAG that takes {"message", "history"} and returns a text.`

interface Props {
  readonly dagId: string
  readonly isPaused: boolean
  readonly children: React.ReactNode
}

function Conversation({ dagId, isPaused, children }: Props) {
  const { turns, state, view, send, retry, stop, clear } = useChat(dagId)
  return (
    <>
      <div className="heading">
        <h1 className="visually-hidden">Chat with {dagId}</h1>
        <div className="row">{children}</div>
        <div className="row">
          {state !== null && <ConnectionState state={state} />}
          {turns.length > 0 && state === null && (
            <button type="button" className="quiet" onClick={clear}>
              New chat
            </button>
          )}
        </div>
      </div>
      {isPaused && <p className="card problem">This DAG is paused. Unpause it in Airflow to get answers.</p>}
      <MessageList dagId={dagId} turns={turns} view={view} onRetry={retry} />
      <MessageForm busy={state !== null} onSend={send} onStop={stop} />
    </>
  )
}
