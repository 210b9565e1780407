// What AI agents do in tasks, from the frames `thinking`, `tool_call` and `tool_result`. Pure.

import type { Thinking, ToolCall, ToolResult } from "./protocol/frames.js"

/** A part of what an AI agent does beside writing its answer. */
export type AgentPart =
  | {
      readonly kind: "thinking"
      readonly text: string
      /** Length of the task's `text` at that moment: where in the text the agent has thought this. */
      readonly textOffset: number
    }
  | {
      readonly kind: "tool"
      readonly id: string
      /** `null` if the call itself was not kept. */
      readonly name: string | null
      readonly arguments: unknown
      /** `running` until the result or the error arrives. */
      readonly state: "running" | "done" | "failed"
      readonly result: unknown
      readonly error: string | null
      readonly textOffset: number
    }

type ToolPart = AgentPart & { kind: "tool" }

/** Return the parts after a frame whose value is not withheld. */
export function applyAgentFrame(
  parts: readonly AgentPart[],
  frame: Thinking | ToolCall | ToolResult,
  textOffset: number,
): readonly AgentPart[] {
  if (frame.value === undefined) return parts
  if (frame.type === "thinking") {
    const last = parts.at(-1)
    return last?.kind === "thinking" && last.textOffset === textOffset
      ? [...parts.slice(0, -1), { ...last, text: last.text + frame.value }]
      : [...parts, { kind: "thinking", text: frame.value, textOffset }]
  }
  const { id } = frame.value
  const index = parts.findIndex((part) => part.kind === "tool" && part.id === id)
  const before: ToolPart = (parts[index] as ToolPart | undefined) ?? {
    kind: "tool",
    id,
    name: null,
    arguments: null,
    state: "running",
    result: null,
    error: null,
    textOffset,
  }
  const after: ToolPart =
    frame.type === "tool_call"
      ? { ...before, name: frame.value.name, arguments: frame.value.arguments }
      : {
          ...before,
          state: frame.value.error == null ? "done" : "failed",
          result: frame.value.result ?? null,
          error: frame.value.error ?? null,
        }
  return index < 0 ? [...parts, after] : parts.map((part, place) => (place === index ? after : part))
}
