// A page of CopilotKit, as the documentation has it: `?server=…&key=…&thread=…`.
import { CopilotChat, CopilotKitProvider, useInterrupt } from "@copilotkit/react-core/v2"
import { AirflowAgent } from "airflow-stream-agui"
import { createRoot } from "react-dom/client"

const query = new URLSearchParams(location.search)
const agent = new AirflowAgent({
  dagId: "chat",
  baseUrl: query.get("server"),
  auth: { bearer: query.get("key") },
})

function Questions() {
  useInterrupt({
    render: ({ interrupt, resolve }) => (
      <fieldset>
        <legend>{interrupt?.message}</legend>
        {interrupt?.responseSchema.properties.chosen_options.enum.map((option) => (
          <button key={option} type="button" onClick={() => resolve({ chosen_options: option })}>
            {option}
          </button>
        ))}
      </fieldset>
    ),
  })
  return null
}

createRoot(document.body.appendChild(document.createElement("main"))).render(
  <CopilotKitProvider selfManagedAgents={{ default: agent }}>
    <Questions />
    <CopilotChat threadId={query.get("thread")} />
  </CopilotKitProvider>,
)
