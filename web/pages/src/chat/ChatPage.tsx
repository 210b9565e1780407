import { useEffect, useState } from "react"
import { Connection } from "../parts/Connection.js"
import { Page } from "../parts/Page.js"
import type { DagList } from "../server.js"
import { useSession } from "../session.js"
import { useAsked } from "../useAsked.js"
import { Compose } from "./Compose.js"
import { Messages } from "./Messages.js"
import { useChat } from "./useChat.js"
import "../styles/chat.css"

const TAG = "chat"

/** A chat with a DAG that is made for it. */
export function ChatPage() {
  const { value, error } = useAsked<DagList>(`/api/v2/stream/dags?tag=${TAG}`)
  const { needed } = useSession()
  const [chosen, setChosen] = useState(() => new URLSearchParams(location.search).get("dag_id"))
  const dags = value?.dags ?? []
  const dag = dags.find((one) => one.dag_id === chosen) ?? dags[0]

  useEffect(() => {
    if (dag !== undefined) history.replaceState(null, "", `/chat?dag_id=${encodeURIComponent(dag.dag_id)}`)
  }, [dag])

  return (
    <Page title="Chat" here="chat">
      <div className="chat">
        {dag === undefined ? (
          <>
            <h1>Chat</h1>
            {!needed && (
              <p className="card" role="status">
                {error ?? (value === null ? "Asking which DAGs chat …" : NONE)}
              </p>
            )}
          </>
        ) : (
          <Conversation key={dag.dag_id} dagId={dag.dag_id} isPaused={dag.is_paused}>
            <label className="picker">
              <span className="unseen">DAG to talk to</span>
              <select value={dag.dag_id} onChange={(event) => setChosen(event.target.value)}>
                {dags.map((one) => (
                  <option key={one.dag_id}>{one.dag_id}</option>
                ))}
              </select>
            </label>
            {dag.description !== null && <span className="faint description">{dag.description}</span>}
          </Conversation>
        )}
      </div>
    </Page>
  )
}

const NONE = `No DAG that you may read has the tag “${TAG}”. Give it to one that takes {"message", "history"} and returns a text.`

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
        <h1 className="unseen">Chat with {dagId}</h1>
        <div className="row">{children}</div>
        <div className="row">
          {state !== null && <Connection state={state} />}
          {turns.length > 0 && state === null && (
            <button type="button" className="quiet" onClick={clear}>
              New chat
            </button>
          )}
        </div>
      </div>
      {isPaused && (
        <p className="card problem">This DAG is paused: its answers wait until it is unpaused in Airflow.</p>
      )}
      <Messages dagId={dagId} turns={turns} view={view} onRetry={retry} />
      <Compose busy={state !== null} onSend={send} onStop={stop} />
    </>
  )
}
