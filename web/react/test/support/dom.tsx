// Renders React components into a document, with Node's fetch.

import { Window } from "happy-dom"
import { act, type ReactNode, StrictMode } from "react"
import { createRoot } from "react-dom/client"

const window = new Window()
Object.assign(globalThis, { window, document: window.document, IS_REACT_ACT_ENVIRONMENT: true })

const DEADLINE_MS = 5_000

export interface Rendered {
  readonly text: () => string
  /** Clicks the first button. */
  click(): void
  render(node: ReactNode): Promise<void>
  /** Resolves when the text contains `part`. */
  until(part: string): Promise<void>
  unmount(): Promise<void>
}

/** Renders in strict mode, which mounts each component twice. */
export async function renderStrict(node: ReactNode): Promise<Rendered> {
  const element = document.createElement("div")
  document.body.append(element)
  const root = createRoot(element)
  const rendered: Rendered = {
    text: () => element.textContent ?? "",
    click: () => element.querySelector("button")?.click(),
    render: (next) => act(async () => root.render(<StrictMode>{next}</StrictMode>)),
    until: async (part) => {
      const deadline = performance.now() + DEADLINE_MS
      while (!rendered.text().includes(part)) {
        if (performance.now() > deadline) throw new Error(`Not rendered: ${part}; rendered: ${rendered.text()}`)
        await act(() => new Promise((resolve) => setImmediate(resolve)))
      }
    },
    unmount: () => act(async () => root.unmount()),
  }
  await rendered.render(node)
  return rendered
}
