// Answers a request for human input.

import { StreamError } from "../errors.js"
import { decideNextStep } from "../stream/reconnect_decision.js"
import type { InputAnswer, InputKey } from "../types.js"
import { buildUrl, canRenewCredential, readRefusal, type ServerAccess, sendRequest } from "./http.js"
import { buildRunPath } from "./stream_request.js"

/** Send an answer. The request is repeated with a new credential if the first one is refused. */
export async function answerInput(
  server: ServerAccess,
  request: InputKey,
  answer: InputAnswer,
  refresh = false,
): Promise<void> {
  const run = buildRunPath({ dagId: request.dag_id, runId: request.run_id })
  const path = `${run}/taskInstances/${encodeURIComponent(request.task_id)}/input`
  const query = new URLSearchParams({ map_index: String(request.map_index) })
  if (typeof request.iteration === "number") query.set("iteration", String(request.iteration))
  const url = buildUrl(server, path, query)
  const { chosenOptions, paramsInput = {} } = answer
  const body = { chosen_options: chosenOptions, params_input: paramsInput, asked_at: request.asked_at }
  const headers = { "Content-Type": "application/json" }
  const response = await sendRequest(server, url, { method: "POST", headers, body: JSON.stringify(body) }, refresh)
  if (response.ok) return
  const step = decideNextStep(await readRefusal(response), !refresh && canRenewCredential(server.auth))
  if (step.kind === "reconnect" && step.refresh) return answerInput(server, request, answer, true)
  throw step.kind === "stop" ? new StreamError("refused", "No response") : step.error
}
