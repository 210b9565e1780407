import { type KeyboardEvent, type SubmitEvent, useRef, useState } from "react"

interface Props {
  /** Whether an answer is on its way. */
  readonly busy: boolean
  onSend(message: string): void
  onStop(): void
}

/** Where people write. Enter sends, Shift and Enter begins a line. */
export function Compose({ busy, onSend, onStop }: Props) {
  const [text, setText] = useState("")
  const form = useRef<HTMLFormElement>(null)

  function submit(event: SubmitEvent) {
    event.preventDefault()
    if (busy || text.trim() === "") return
    onSend(text.trim())
    setText("")
  }

  function onKeyDown(event: KeyboardEvent) {
    // While an input method composes, Enter chooses a word.
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return
    event.preventDefault()
    form.current?.requestSubmit()
  }

  return (
    <form className="compose" ref={form} onSubmit={submit}>
      <label htmlFor="message" className="unseen">
        Your message
      </label>
      <textarea
        id="message"
        rows={1}
        placeholder="Ask something"
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
