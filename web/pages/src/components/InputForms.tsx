import type { Input, InputAnswered, RunView } from "airflow-stream-client"
import { type SubmitEvent, useId, useState } from "react"
import { messageOfError } from "../api/api.js"
import { getClient } from "../api/streamClient.js"
import { buildFields, type Field, parseField } from "./inputFields.js"
import { formatDateTime } from "./time.js"
import "../styles/input.css"

/** What tasks of the run ask people, each as a form until it is answered. */
export function InputForms({ view }: { view: RunView }) {
  return Object.entries(view.inputs ?? {}).map(([key, { request, answer, isOpen }]) => {
    if (answer !== null) return <GivenAnswer key={key} request={request} answer={answer} />
    return isOpen ? <InputForm key={`${key} ${request.try_number} ${request.asked_at}`} request={request} /> : null
  })
}

function InputForm({ request }: { request: Input }) {
  const title = useId()
  const [chosen, setChosen] = useState<readonly string[]>([])
  const [fields, setFields] = useState(() => buildFields(request.params ?? {}))
  const [status, setStatus] = useState<"open" | "sending" | "sent">("open")
  const [problem, setProblem] = useState<string | null>(null)
  const { options = [], multiple = false } = request

  async function submit(event: SubmitEvent) {
    event.preventDefault()
    setProblem(null)
    try {
      const paramsInput = Object.fromEntries(fields.map((field) => [field.name, parseField(field)]))
      setStatus("sending")
      await getClient().answer(request, { chosenOptions: chosen, paramsInput })
      setStatus("sent")
    } catch (error) {
      setStatus("open")
      setProblem(messageOfError(error))
    }
  }

  function choose(option: string, isChosen: boolean) {
    if (!multiple) setChosen([option])
    else setChosen(isChosen ? [...chosen, option] : chosen.filter((one) => one !== option))
  }

  return (
    <form className="card input-form" aria-labelledby={title} onSubmit={(event) => void submit(event)}>
      <p className="faint">
        {nameOf(request)} asks
        {request.expires_at != null && ` until ${formatDateTime(request.expires_at)}`}
      </p>
      <h2 id={title}>{request.subject ?? "A question"}</h2>
      {request.body != null && <p className="text">{request.body}</p>}
      <Notes request={request} />
      {options.length > 0 && (
        <>
          <fieldset disabled={status !== "open"}>
            <legend className="visually-hidden">Answer</legend>
            {options.map((option) => (
              <label key={option} className="option">
                <input
                  type={multiple ? "checkbox" : "radio"}
                  name={title}
                  checked={chosen.includes(option)}
                  onChange={(event) => choose(option, event.target.checked)}
                />
                {option}
              </label>
            ))}
            {fields.map((field, index) => (
              <FieldInput
                key={field.name}
                field={field}
                onChange={(text) => setFields(fields.map((one, at) => (at === index ? { ...field, text } : one)))}
              />
            ))}
          </fieldset>
          <button type="submit" disabled={status !== "open" || chosen.length === 0}>
            Send answer
          </button>
        </>
      )}
      <p role="status" className="faint">
        {status === "sending" && "Sending…"}
        {status === "sent" && "Sent."}
      </p>
      {problem !== null && (
        <p className="problem" role="alert">
          {problem}
        </p>
      )}
    </form>
  )
}

/** Who may answer, and why there is no content. */
function Notes({ request }: { request: Input }) {
  const { assignees = [], reference, withheld } = request
  return (
    <>
      {assignees.length > 0 && <p className="faint">For {assignees.map((user) => user.name).join(", ")}</p>}
      {withheld && <p className="faint">You do not have permission to read this question.</p>}
      {reference != null && (
        <p className="faint">
          The question is too large to be shown here ({reference.bytes} bytes). Answer it in Airflow.
        </p>
      )}
    </>
  )
}

function FieldInput({ field, onChange }: { field: Field; onChange(text: string): void }) {
  const id = useId()
  const { kind, label, text, choices } = field
  if (kind === "boolean")
    return (
      <label className="option">
        <input
          type="checkbox"
          checked={text === "true"}
          onChange={(event) => onChange(event.target.checked ? "true" : "false")}
        />
        {label}
      </label>
    )
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {kind === "choice" ? (
        <select id={id} value={text} onChange={(event) => onChange(event.target.value)}>
          {choices.map((choice) => (
            <option key={choice}>{choice}</option>
          ))}
        </select>
      ) : kind === "json" ? (
        <textarea id={id} rows={3} value={text} onChange={(event) => onChange(event.target.value)} />
      ) : (
        <input
          id={id}
          type={kind === "number" ? "number" : "text"}
          step="any"
          value={text}
          onChange={(event) => onChange(event.target.value)}
        />
      )}
    </div>
  )
}

function GivenAnswer({ request, answer }: { request: Input; answer: InputAnswered }) {
  const { by, expired, chosen_options: chosen = [], withheld } = answer
  const author = expired ? "no one in time, so the defaults were chosen" : (by?.name ?? "a user")
  return (
    <section className="card input-form" aria-label={`Answer to ${nameOf(request)}`}>
      <p className="faint">
        {nameOf(request)} asked{request.subject != null && `: ${request.subject}`}
      </p>
      <p>
        <b>{withheld ? "Answered" : chosen.join(", ")}</b> <span className="faint">by {author}</span>
      </p>
    </section>
  )
}

function nameOf({ task_id, map_index, iteration }: Input): string {
  const name = map_index < 0 ? task_id : `${task_id}[${map_index}]`
  return typeof iteration === "number" ? `${name}, iteration ${iteration},` : name
}
