// Cancels a run.

import { StreamError } from "../errors.js"
import { decideNextStep } from "../stream/reconnect_decision.js"
import type { RunKey } from "../types.js"
import { buildUrl, canRenewCredential, readRefusal, type ServerAccess, sendRequest } from "./http.js"
import { buildRunPath } from "./stream_request.js"

/** Return the state of the run. The request is repeated with a new credential if the first one is refused. */
export async function cancelRun(server: ServerAccess, key: RunKey, refresh = false): Promise<string | null> {
  const url = buildUrl(server, `${buildRunPath(key)}/cancel`, new URLSearchParams())
  const response = await sendRequest(server, url, { method: "POST" }, refresh)
  if (response.ok) return ((await response.json()) as { state?: string | null }).state ?? null
  const step = decideNextStep(await readRefusal(response), !refresh && canRenewCredential(server.auth))
  if (step.kind === "reconnect" && step.refresh) return cancelRun(server, key, true)
  throw step.kind === "stop" ? new StreamError("refused", "No response") : step.error
}
