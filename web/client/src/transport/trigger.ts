// Triggers a run and streams it.
//
// The first connection is the POST that triggers the run; all later ones are GETs of the run's stream:
//
//   before the run id is known   POST, again after each lost connection. The same `Idempotency-Key` prevents a second run.
//   after that                   GET with the cursor, by the connector of the run
//
// The run id comes from a response header or, where CORS hides headers, from the first frame that contains it.

import type { Frame } from "../protocol/frames.js"
import { createRandomId } from "../random_id.js"
import type { RunKey, RunOptions } from "../types.js"
import { buildUrl, readRefusal, type ServerAccess, sendRequest } from "./http.js"
import { readEventStream } from "./sse.js"
import { buildQuery, buildRunRequest, buildRunsPath } from "./stream_request.js"
import { type ConnectionEnd, type ConnectOptions, type Connector, lost, type OnFrames } from "./transport.js"

export interface TriggerOptions {
  readonly dagId: string
  readonly conf: Readonly<Record<string, unknown>>
  readonly options: RunOptions
  /** Whether the response to the POST is the stream. If not, it only contains the run id. */
  readonly canStreamPost: boolean
  /** Returns the connector of the run's stream. */
  readonly createConnector: (key: RunKey) => Connector
  readonly onTriggered: (key: RunKey) => void
}

export function createTriggerConnector(server: ServerAccess, options: TriggerOptions): Connector {
  const trigger = new RunTrigger(server, options)
  return (connectOptions, onFrames) => trigger.connect(connectOptions, onFrames)
}

class RunTrigger {
  readonly #server: ServerAccess
  readonly #trigger: TriggerOptions
  readonly #idempotencyKey: string
  /** The connector of the run's stream; `null` until the run id is known. */
  #connector: Connector | null = null

  constructor(server: ServerAccess, trigger: TriggerOptions) {
    this.#server = server
    this.#trigger = trigger
    this.#idempotencyKey = trigger.options.idempotencyKey ?? createRandomId()
  }

  async connect(options: ConnectOptions, onFrames: OnFrames): Promise<ConnectionEnd> {
    if (this.#connector === null) {
      const end = await this.#post(options, onFrames)
      if (end !== null) return end
    }
    return this.#connector === null ? lost("The run id is unknown") : this.#connector(options, onFrames)
  }

  /** Trigger the run. Returns how the connection ended, or `null` if the stream is not open yet. */
  async #post({ refresh, signal }: ConnectOptions, onFrames: OnFrames): Promise<ConnectionEnd | null> {
    const { dagId, canStreamPost } = this.#trigger
    let response: Response
    try {
      const url = buildUrl(this.#server, buildRunsPath(dagId), this.#buildQuery())
      response = await sendRequest(this.#server, url, { ...this.#buildRequest(), signal }, refresh)
    } catch (error) {
      return lost(`No connection: ${error}`)
    }
    const runId = parseRunId(response.headers.get("Content-Location") ?? response.headers.get("Location"))
    // Before the status is checked: an error after the run was triggered contains its id, too.
    if (runId !== null) this.#setRun({ dagId, runId })
    if (!response.ok) return readRefusal(response)
    if (canStreamPost) return readEventStream(response, (frames) => this.#receive(frames, onFrames))
    await response.body?.cancel().catch(() => {})
    return runId === null
      ? { kind: "not_a_stream", status: response.status, reason: "The response contains no run id" }
      : null
  }

  #receive(frames: readonly Frame[], onFrames: OnFrames): void {
    for (const frame of this.#connector === null ? frames : []) {
      if ("run_id" in frame && frame.run_id) this.#setRun({ dagId: this.#trigger.dagId, runId: frame.run_id })
    }
    onFrames(frames)
  }

  #setRun(key: RunKey): void {
    this.#connector = this.#trigger.createConnector(key)
    this.#trigger.onTriggered(key)
  }

  #buildQuery(): URLSearchParams {
    const { dagId, options, canStreamPost } = this.#trigger
    const query = new URLSearchParams({ wait_for_completion: "true" })
    if (options.ifExists !== undefined) query.set("if_exists", options.ifExists)
    if (!canStreamPost) {
      // Respond at once: the stream is opened by another connection.
      query.set("timeout", "0")
      return query
    }
    for (const [name, value] of buildQuery(buildRunRequest({ dagId, runId: "" }, options))) query.append(name, value)
    if (options.onDisconnect !== undefined) query.set("on_disconnect", options.onDisconnect)
    return query
  }

  #buildRequest(): RequestInit {
    const { conf, options, canStreamPost } = this.#trigger
    const { dagRunId, logicalDate, note } = options
    const body = { conf, dag_run_id: dagRunId, logical_date: logicalDate, note }
    return {
      method: "POST",
      headers: {
        Accept: canStreamPost ? "text/event-stream" : "application/json",
        "Content-Type": "application/json",
        "Idempotency-Key": this.#idempotencyKey,
      },
      // JSON.stringify leaves out members that are undefined.
      body: JSON.stringify(body),
    }
  }
}

/** Return the run id in a URL. Its host is ignored: credentials are only sent to the configured server. */
function parseRunId(url: string | null): string | null {
  const found = url?.match(/\/dagRuns\/([^/?#]+)/)?.[1]
  try {
    return found === undefined ? null : decodeURIComponent(found)
  } catch {
    return null
  }
}
