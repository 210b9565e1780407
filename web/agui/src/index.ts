import {
  AbstractAgent,
  type AgentCapabilities,
  type AgentConfig,
  type BaseEvent,
  type Message,
  type RunAgentInput,
} from "@ag-ui/client"
import { StreamError } from "airflow-stream-client"
import {
  type AccessOptions,
  buildUrl,
  canRenewCredential,
  createServerAccess,
  decideNextStep,
  readRefusal,
  type ServerAccess,
  sendRequest,
} from "airflow-stream-client/internals"
import { Observable } from "rxjs"
import { type ConversationStorage, Conversations, detectStorage } from "./conversations.js"
import { followRun } from "./follow_run.js"
import { RunEvents } from "./run_events.js"

export type { ConversationStorage } from "./conversations.js"

export interface AirflowAgentConfig extends AgentConfig, AccessOptions {
  /** A DAG with the tag `chat`. */
  readonly dagId: string
  /** Where the messages of a thread are kept for a reload: by default `sessionStorage`; `null` keeps none. */
  readonly storage?: ConversationStorage | null
}

/** An agent whose runs are runs of a DAG. It reconnects, and `connectAgent` continues after a reload. */
export class AirflowAgent extends AbstractAgent {
  // No `#private` members: `clone` of the base class makes objects without them.
  private path: string
  private server: ServerAccess
  private conversations: Conversations
  private cancel: (() => void) | null = null

  constructor(config: AirflowAgentConfig) {
    super(config)
    this.path = `/api/v2/dags/${encodeURIComponent(config.dagId)}/ag-ui`
    this.server = createServerAccess(config)
    this.conversations = new Conversations(
      config.storage === undefined ? detectStorage() : config.storage,
      config.dagId,
    )
    const { conversations } = this
    this.subscribe({
      onRunFinalized: ({ agent, messages }) => conversations.save(agent.threadId, messages as Message[]),
    })
  }

  override run(input: RunAgentInput): Observable<BaseEvent> {
    this.conversations.save(input.threadId, input.messages)
    return this.follow(input, false)
  }

  /** Restore the messages of the thread, and stream the rest of its last run. */
  override connect(input: RunAgentInput): Observable<BaseEvent> {
    const messages = input.messages.length > 0 ? input.messages : this.conversations.load(input.threadId)
    return this.follow({ ...input, messages }, true)
  }

  /** Set the DAG run to failed. Leaving the page does not. */
  override abortRun(): void {
    this.cancel?.()
  }

  override async getCapabilities(): Promise<AgentCapabilities> {
    return (await this.request("GET", this.path)).json()
  }

  override clone(): AirflowAgent {
    const cloned = super.clone() as AirflowAgent
    cloned.path = this.path
    cloned.server = this.server
    cloned.conversations = this.conversations
    cloned.cancel = null
    return cloned
  }

  private follow(input: RunAgentInput, isConnect: boolean): Observable<BaseEvent> {
    return new Observable((subscriber) => {
      const abort = new AbortController()
      const events = new RunEvents(input.messages, (event) => subscriber.next(event))
      const thread = `${this.path}/${encodeURIComponent(input.threadId)}`
      let isCancelled = false
      const stop = () => {
        abort.abort()
        finish(events, input, { type: "cancelled" })
        this.request("POST", `${thread}/stop`).then(
          () => subscriber.complete(),
          (error) => subscriber.error(error),
        )
      }
      const cancel = () => {
        if (isCancelled) return
        isCancelled = true
        // Until then, the run of the thread may be that of an earlier question, or none.
        if (events.isStarted) stop()
        else events.onStarted = stop
      }
      this.cancel = cancel
      const paths = { run: this.path, connect: `${thread}/connect` }
      followRun({ server: this.server, paths, input, isConnect, events, signal: abort.signal })
        .then(() => {
          if (abort.signal.aborted) return
          if (!(events.isStarted || isCancelled) && input.messages.length > 0) restore(events, input)
          subscriber.complete()
        })
        .catch((error) => subscriber.error(error))
      return () => {
        // A run that is to be stopped has to start first.
        if (events.isStarted || !isCancelled) abort.abort()
        if (this.cancel === cancel) this.cancel = null
      }
    })
  }

  private async request(method: string, path: string, refresh = false): Promise<Response> {
    const response = await sendRequest(
      this.server,
      buildUrl(this.server, path, new URLSearchParams()),
      { method },
      refresh,
    )
    if (response.ok) return response
    const step = decideNextStep(await readRefusal(response), !refresh && canRenewCredential(this.server.auth))
    if (step.kind === "reconnect" && step.refresh) return this.request(method, path, true)
    throw step.kind === "stop" ? new StreamError("refused", "No response") : step.error
  }
}

/** The thread has no run any more: only its messages are there. */
function restore(events: RunEvents, { threadId, runId, messages }: RunAgentInput): void {
  events.apply({ type: "RUN_STARTED", threadId, runId }, messages)
  events.apply({ type: "RUN_FINISHED", threadId, runId, outcome: { type: "success" } })
}

function finish(events: RunEvents, { threadId, runId }: RunAgentInput, outcome: object): void {
  if (!events.isStarted || events.isComplete) return
  events.closeOpen()
  events.apply({ type: "RUN_FINISHED", threadId, runId, outcome })
}
