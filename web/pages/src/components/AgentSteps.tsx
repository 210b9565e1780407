import type { AgentStep } from "./agentSteps.js"
import "../styles/agent.css"

const STATES: Record<AgentStep["state"], string> = { running: "running", done: "", failed: "failed" }

/** Thinking and tool calls of AI agents, collapsed. */
export function AgentSteps({ steps }: { steps: readonly AgentStep[] }) {
  if (steps.length === 0) return null
  const severalTasks = new Set(steps.map(({ task }) => task)).size > 1
  return (
    <ul className="agent-steps" aria-label="Steps of the agent">
      {steps.map((step) => (
        <li key={step.key}>
          <details data-kind={step.kind} data-state={step.state}>
            <summary>
              {severalTasks && <span className="faint">{step.task}: </span>}
              {step.title} <span className="state">{STATES[step.state]}</span>
            </summary>
            {step.input !== null && <pre>{step.input}</pre>}
            {step.kind === "thinking" ? <p>{step.text}</p> : step.text !== "" && <pre>{step.text}</pre>}
          </details>
        </li>
      ))}
    </ul>
  )
}
