import { type KeyboardEvent, type SubmitEvent, useRef, useState } from "react"

interface Props {
  /** Whether an answer is in progress. */
  readonly busy: boolean
  onSend(message: string): void
  onStop(): void
}

/** Enter sends the message; Shift and Enter starts a new line. */
export function MessageForm({ busy, onSend, onStop }: Props) {
  const [text, setText] = useState("")
  const form = useRef<HTMLFormElement>(null)

  function submit(event: SubmitEvent) {
    event.preventDefault()
    if (busy || text.trim() === "") return
    onSend(text.trim())
    setText("")
  }

  function onKeyDown(event: KeyboardEvent) {
    // In an input method, for example for Japanese, Enter selects a candidate.
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return
    event.preventDefault()
    form.current?.requestSubmit()
  }

  return (
    <form className="compose" ref={form} onSubmit={submit}>
      <label htmlFor="message" className="visually-hidden">
        Your message
      </label>
      <textarea
        id="message"
        rows={1}
        placeholder="Ask a question"
        value={text}
        onChange={(event) => setText(event.target.value)}
        onKeyDown={onKeyDown}
      />
      {busy ? (
        <button type="button" className="danger" onClick={onStop}>
          Stop
        </button>
      ) : (
        <button type="submit" disabled={text.trim() === ""}>
          Send
        </button>
      )}
    </form>
  )
}
