// Streams a run of the protocol over as many connections as it takes.

import type { RunAgentInput } from "@ag-ui/client"
import { StreamError } from "airflow-stream-client"
import {
  buildUrl,
  type ConnectionEnd,
  canRenewCredential,
  computeBackoff,
  decideNextStep,
  lost,
  readEventStream,
  type ServerAccess,
  sendRequest,
} from "airflow-stream-client/internals"
import type { RunEvents, WireEvent } from "./run_events.js"

/** The path that triggers and answers, and the one that continues. */
export interface AgentPaths {
  readonly run: string
  readonly connect: string
}

export interface FollowedRun {
  readonly server: ServerAccess
  readonly paths: AgentPaths
  readonly input: RunAgentInput
  /** Whether the run exists already. */
  readonly isConnect: boolean
  readonly events: RunEvents
  readonly signal: AbortSignal
}

/**
 * Resolves when the run of the protocol has ended, when the signal aborts, or if the thread has no run. Rejects with a
 * `StreamError` if the server refuses.
 */
export async function followRun(run: FollowedRun): Promise<void> {
  const { server, events, signal } = run
  let failures = 0
  let refresh = false
  let restored = run.isConnect ? run.input.messages : []
  while (!signal.aborted) {
    const { received } = events
    const end = await connect(run, refresh, restored)
    if (hasEnded(run, end)) return
    restored = []
    const step = decideReconnect(server, end, refresh)
    refresh = step.refresh
    events.closeOpen()
    failures = events.received > received ? 1 : failures + 1
    if (!refresh) await sleep(server, computeBackoff(failures, step.minDelayMs, server.platform.random()), signal)
  }
}

function hasEnded({ signal, events }: FollowedRun, end: ConnectionEnd): boolean {
  return signal.aborted || events.isComplete || (end.kind === "complete" && !events.isStarted)
}

function decideReconnect(server: ServerAccess, end: ConnectionEnd, wasRefreshed: boolean) {
  const step = decideNextStep(end, !wasRefreshed && canRenewCredential(server.auth))
  if (step.kind === "reconnect") return step
  throw step.kind === "fail"
    ? step.error
    : new StreamError("lost", "The server does not know the run of this thread any more")
}

async function connect(
  run: FollowedRun,
  refresh: boolean,
  restored: RunAgentInput["messages"],
): Promise<ConnectionEnd> {
  const { server, paths, events, signal } = run
  // The server compares the messages with the run. The same request with answers changes nothing the second time.
  const isContinued = (events.isStarted && !run.input.resume?.length) || run.isConnect
  const path = isContinued ? paths.connect : paths.run
  const body = JSON.stringify({ ...run.input, messages: events.messages })
  const headers = { Accept: "text/event-stream", "Content-Type": "application/json" }
  // Aborts this connection alone, once it has nothing more.
  const closing = new AbortController()
  const stop = () => closing.abort()
  signal.addEventListener("abort", stop)
  try {
    const url = buildUrl(server, path, new URLSearchParams())
    const init = { method: "POST", headers, body, signal: closing.signal }
    const response = await sendRequest(server, url, init, refresh)
    return await readEventStream(response, (received) => {
      for (const event of received as unknown as WireEvent[]) {
        if (signal.aborted || closing.signal.aborted) return
        if (events.apply(event, restored)) closing.abort()
      }
    })
  } catch (error) {
    return lost(`No connection: ${error}`)
  } finally {
    signal.removeEventListener("abort", stop)
  }
}

function sleep(server: ServerAccess, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const cancel = server.platform.clock.after(ms, done)
    const forget = server.platform.onWake(done)
    signal.addEventListener("abort", done, { once: true })
    function done() {
      cancel()
      forget()
      signal.removeEventListener("abort", done)
      resolve()
    }
  })
}
