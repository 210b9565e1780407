// The client: creates streams. What many applications never use is loaded on demand.

import { createServerAccess } from "./internals.js"
import type { ReconnectOptions } from "./stream/reconnection.js"
import { MultiRunStream, SingleRunStream } from "./stream/run_streams.js"
import { canRenewCredential, type ServerAccess } from "./transport/http.js"
import { selectTransport } from "./transport/selection.js"
import { buildMultiRunRequest, buildRunRequest } from "./transport/stream_request.js"
import type { Connector, Transport } from "./transport/transport.js"
import type { TriggerOptions } from "./transport/trigger.js"
import type {
  Client,
  ClientOptions,
  Filter,
  FollowOptions,
  FrameStream,
  InputAnswer,
  InputKey,
  RunOptions,
  RunStream,
  WatchOptions,
} from "./types.js"

const PING_INTERVAL_MS = 15_000

/** A run that could not be triggered within this time is not triggered later, when the caller may have left. */
const TRIGGER_TIMEOUT_MS = 60_000

/** Return a client of a server. */
export function createClient(options: ClientOptions = {}): Client {
  return new StreamClient(options)
}

class StreamClient implements Client {
  readonly #options: ClientOptions
  readonly #server: ServerAccess
  readonly #transport: Transport
  readonly #streams = new Set<{ close(): void }>()

  constructor(options: ClientOptions) {
    this.#options = options
    this.#server = createServerAccess(options)
    this.#transport = selectTransport(this.#server, options)
  }

  watch(dagId: string, runId: string, options: WatchOptions = {}): RunStream {
    const key = { dagId, runId }
    const connector = this.#transport.createConnector(buildRunRequest(key, options))
    const stream = new SingleRunStream(connector, this.#server.platform, this.#reconnectOptions(), options)
    stream.setRun(key)
    return this.#addStream(stream)
  }

  run(dagId: string, conf: Readonly<Record<string, unknown>> = {}, options: RunOptions = {}): RunStream {
    let isTriggered = false
    const triggerOptions: TriggerOptions = {
      dagId,
      conf,
      options,
      canStreamPost: this.#transport.canStreamPost,
      createConnector: (key) => this.#transport.createConnector(buildRunRequest(key, options)),
      onTriggered: (key) => {
        isTriggered = true
        stream.setRun(key)
      },
    }
    let trigger: Connector | null = null
    const connector: Connector = async (...connection) => {
      trigger ??= (await import("./transport/trigger.js")).createTriggerConnector(this.#server, triggerOptions)
      return trigger(...connection)
    }
    const { giveUpAfterMs, ...others } = this.#reconnectOptions()
    const limit = () => (isTriggered ? giveUpAfterMs() : Math.min(giveUpAfterMs(), TRIGGER_TIMEOUT_MS))
    const stream = new SingleRunStream(connector, this.#server.platform, { ...others, giveUpAfterMs: limit }, options)
    return this.#addStream(stream)
  }

  follow(filter: Filter = {}, options: FollowOptions = {}): FrameStream {
    const connector = this.#transport.createConnector(buildMultiRunRequest(filter))
    const reconnectOptions = { ...this.#reconnectOptions(), cursor: options.cursor ?? null }
    return this.#addStream(new MultiRunStream(connector, this.#server.platform, reconnectOptions, options.signal))
  }

  async cancel(dagId: string, runId: string): Promise<string | null> {
    return (await import("./transport/cancel.js")).cancelRun(this.#server, { dagId, runId })
  }

  async answer(request: InputKey, answer: InputAnswer): Promise<void> {
    return (await import("./transport/answer.js")).answerInput(this.#server, request, answer)
  }

  close(): void {
    for (const stream of this.#streams) stream.close()
    this.#streams.clear()
    this.#transport.close()
  }

  #reconnectOptions(): ReconnectOptions {
    return {
      canRenew: canRenewCredential(this.#server.auth),
      giveUpAfterMs: () => this.#options.giveUpAfterMs ?? this.#options.patienceMs ?? Number.POSITIVE_INFINITY,
      pingIntervalMs: this.#options.pingIntervalMs ?? PING_INTERVAL_MS,
    }
  }

  /** Keep a stream until it is over, so that `close` closes it. */
  #addStream<Stream extends SingleRunStream | MultiRunStream>(stream: Stream): Stream {
    this.#streams.add(stream)
    void stream.done.then(() => this.#streams.delete(stream))
    return stream
  }
}
