// A page with `useChat`, as the documentation has it: `?api=…&key=…&chat=…`.
import { useChat } from "@ai-sdk/react"
import { DefaultChatTransport } from "ai"
import { createRoot } from "react-dom/client"

const query = new URLSearchParams(location.search)
const api = query.get("api")
const chatId = query.get("chat")
const headers = { Authorization: `Bearer ${query.get("key")}` }
const transport = new DefaultChatTransport({ api, headers })

async function stopRun() {
  const url = new URL(api)
  await fetch(`${url.origin}${url.pathname}/${chatId}/stop`, { method: "POST", headers })
}

async function sendAnswer({ dag_id, run_id }, question, option) {
  const { task_id, map_index } = question
  const path = ["dags", dag_id, "dagRuns", run_id, "taskInstances", task_id].map(encodeURIComponent).join("/")
  await fetch(`${new URL(api).origin}/api/v2/${path}/input?map_index=${map_index}`, {
    method: "POST",
    headers: { ...headers, "Content-Type": "application/json" },
    body: JSON.stringify({ chosen_options: [option], params_input: {} }),
  })
}

function Part({ part, metadata }) {
  if (part.type === "text") return <p className="text">{part.text}</p>
  if (part.type === "data-task") return <p className="task">{`${part.data.task_id}: ${part.data.state}`}</p>
  if (part.type !== "data-input") return null
  const { subject, options, answered } = part.data
  if (answered) return <p className="answered">{answered.chosen_options.join()}</p>
  return (
    <fieldset>
      <legend>{subject}</legend>
      {options.map((option) => (
        <button key={option} type="button" onClick={() => sendAnswer(metadata, part.data, option)}>
          {option}
        </button>
      ))}
    </fieldset>
  )
}

function Chat() {
  const { messages, sendMessage, status, stop, error, resumeStream } = useChat({ id: chatId, transport, resume: true })
  const send = (event) => {
    event.preventDefault()
    sendMessage({ text: new FormData(event.target).get("message") })
  }
  return (
    <>
      {messages.map(({ id, role, parts, metadata }) => (
        <article key={id} id={id} className={role}>
          {parts.map((part, index) => (
            <Part key={index} part={part} metadata={metadata} />
          ))}
        </article>
      ))}
      <output>{status}</output>
      {error && <p role="alert">{error.message}</p>}
      <form onSubmit={send}>
        <input name="message" aria-label="Message" />
      </form>
      <button type="button" onClick={() => stop().then(stopRun)}>Stop</button>
      <button type="button" onClick={() => resumeStream()}>Resume</button>
    </>
  )
}

createRoot(document.body.appendChild(document.createElement("main"))).render(<Chat />)
