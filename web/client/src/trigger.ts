// Triggering a run and watching it as one stream: the POST is its first connection, and what it names is taken up by GET.

import { askForRun, queryOf, runsPath } from "./asks.js"
import type { Ending } from "./endings.js"
import type { Frame } from "./frames.js"
import { addressOf, refusal, type Server, send } from "./http.js"
import type { Attempt, Hear, Open } from "./link.js"
import { readEvents } from "./sse.js"
import type { RunKey, RunOptions } from "./types.js"

export interface Triggering {
  readonly dagId: string
  readonly conf: Readonly<Record<string, unknown>>
  readonly options: RunOptions
  /** Whether the answer to the POST is the stream itself; else it only names the run. */
  readonly streams: boolean
  /** Returns how the stream of the run is opened, once it is known. */
  readonly watch: (key: RunKey) => Open
  readonly onBegun: (key: RunKey) => void
}

/** Returns how to open the stream of a run that is yet to be triggered. */
export function triggered(server: Server, triggering: Triggering): Open {
  const send = new Trigger(server, triggering)
  return (attempt, hear) => send.open(attempt, hear)
}

class Trigger {
  readonly #server: Server
  readonly #triggering: Triggering
  readonly #idempotencyKey: string
  #watch: Open | null = null

  constructor(server: Server, triggering: Triggering) {
    this.#server = server
    this.#triggering = triggering
    // With it, to try again after a lost answer does not trigger again.
    this.#idempotencyKey = triggering.options.idempotencyKey ?? crypto.randomUUID()
  }

  async open(attempt: Attempt, hear: Hear): Promise<Ending> {
    if (this.#watch === null) {
      const ending = await this.#post(attempt, hear)
      if (ending !== null) return ending
    }
    return this.#watch === null ? { kind: "cut", why: "The run has no name yet" } : this.#watch(attempt, hear)
  }

  /** Triggers the run; returns how the connection ended, or `null` where the stream is yet to be opened. */
  async #post({ refresh, signal }: Attempt, hear: Hear): Promise<Ending | null> {
    const { dagId, streams } = this.#triggering
    let response: Response
    try {
      const address = addressOf(this.#server, runsPath(dagId), this.#query())
      response = await send(this.#server, address, { ...this.#request(), signal }, refresh)
    } catch (error) {
      return { kind: "cut", why: `No connection: ${error}` }
    }
    const runId = runIdIn(response.headers.get("Content-Location") ?? response.headers.get("Location"))
    if (runId !== null) this.#begun({ dagId, runId })
    if (!response.ok) return refusal(response)
    if (streams) return readEvents(response, (frames) => this.#hear(frames, hear))
    await response.body?.cancel().catch(() => {})
    return runId === null ? { kind: "strange", status: response.status, why: "The answer names no run" } : null
  }

  /** Takes the run's name from its frames, where headers are kept from pages of other origins. */
  #hear(frames: readonly Frame[], hear: Hear): void {
    for (const frame of this.#watch === null ? frames : []) {
      if ("run_id" in frame && frame.run_id) this.#begun({ dagId: this.#triggering.dagId, runId: frame.run_id })
    }
    hear(frames)
  }

  #begun(key: RunKey): void {
    this.#watch = this.#triggering.watch(key)
    this.#triggering.onBegun(key)
  }

  #query(): URLSearchParams {
    const { dagId, options, streams } = this.#triggering
    const query = new URLSearchParams({ wait_for_completion: "true" })
    if (options.ifExists !== undefined) query.set("if_exists", options.ifExists)
    if (!streams) {
      query.set("timeout", "0")
      return query
    }
    for (const [name, value] of queryOf(askForRun({ dagId, runId: "" }, options))) query.append(name, value)
    if (options.onDisconnect !== undefined) query.set("on_disconnect", options.onDisconnect)
    return query
  }

  #request(): RequestInit {
    const { conf, options, streams } = this.#triggering
    const { dagRunId, logicalDate, note } = options
    const body = { conf, dag_run_id: dagRunId, logical_date: logicalDate, note }
    return {
      method: "POST",
      headers: {
        Accept: streams ? "text/event-stream" : "application/json",
        "Content-Type": "application/json",
        "Idempotency-Key": this.#idempotencyKey,
      },
      // Members that are undefined are left out.
      body: JSON.stringify(body),
    }
  }
}

/** Reads the run's name from the header that names it. Whatever host stands there, we stay where we are. */
function runIdIn(location: string | null): string | null {
  const found = location?.match(/\/dagRuns\/([^/?#]+)/)?.[1]
  try {
    return found === undefined ? null : decodeURIComponent(found)
  } catch {
    return null
  }
}
