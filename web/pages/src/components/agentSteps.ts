// What AI agents in the tasks of a run do, as texts for people. Pure.

import type { AgentPart, RunView } from "airflow-stream-client"

/** Stored with conversations: members cannot be renamed. */
export interface AgentStep {
  readonly key: string
  /** The task instance. */
  readonly task: string
  readonly kind: "thinking" | "tool"
  readonly state: "running" | "done" | "failed"
  /** What is shown first. */
  readonly title: string
  /** Arguments of a tool. */
  readonly input: string | null
  /** The thinking, or the result or error of a tool. */
  readonly text: string
}

/** Texts are cut here: results of tools can be long, and conversations are stored. */
const MAX_LENGTH = 4_000

export function toAgentSteps(view: RunView): AgentStep[] {
  return Object.entries(view.output).flatMap(([task, { agent = [] }]) =>
    agent.map((part, index) => ({ key: `${task} ${index}`, task, ...describePart(part) })),
  )
}

function describePart(part: AgentPart): Omit<AgentStep, "key" | "task"> {
  if (part.kind === "thinking") {
    return { kind: "thinking", state: "done", title: "Thinking", input: null, text: cut(part.text) }
  }
  const { name, state, error, result } = part
  const text = state === "running" ? "" : (error ?? formatValue(result))
  return { kind: "tool", state, title: name ?? "A tool", input: formatValue(part.arguments), text: cut(text) }
}

function formatValue(value: unknown): string {
  return cut(typeof value === "string" ? value : JSON.stringify(value, null, 2))
}

function cut(text: string): string {
  return text.length > MAX_LENGTH ? `${text.slice(0, MAX_LENGTH)}…` : text
}
