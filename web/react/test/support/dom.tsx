// React in a document, with Node's own fetch.

import { Window } from "happy-dom"
import { act, type ReactNode, StrictMode } from "react"
import { createRoot } from "react-dom/client"

const window = new Window()
Object.assign(globalThis, { window, document: window.document, IS_REACT_ACT_ENVIRONMENT: true })

const DEADLINE_MS = 5_000

export interface Shown {
  readonly text: () => string
  /** Clicks on the first button. */
  click(): void
  render(node: ReactNode): Promise<void>
  /** Resolves when the text contains something. */
  until(part: string): Promise<void>
  unmount(): Promise<void>
}

/** Renders in strict mode, which mounts everything twice. */
export async function show(node: ReactNode): Promise<Shown> {
  const element = document.createElement("div")
  document.body.append(element)
  const root = createRoot(element)
  const shown: Shown = {
    text: () => element.textContent ?? "",
    click: () => element.querySelector("button")?.click(),
    render: (next) => act(async () => root.render(<StrictMode>{next}</StrictMode>)),
    until: async (part) => {
      const deadline = performance.now() + DEADLINE_MS
      while (!shown.text().includes(part)) {
        if (performance.now() > deadline) throw new Error(`Not shown: ${part}; but: ${shown.text()}`)
        await act(() => new Promise((resolve) => setImmediate(resolve)))
      }
    },
    unmount: () => act(async () => root.unmount()),
  }
  await shown.render(node)
  return shown
}
