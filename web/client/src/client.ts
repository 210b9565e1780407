// The client: puts the parts together.

import { type Ask, askForRun, askForRuns, pathOf, queryOf, runPath } from "./asks.js"
import { judge } from "./endings.js"
import { StreamError } from "./errors.js"
import { addressOf, isRenewable, refusal, type Server, send } from "./http.js"
import type { LinkOptions, Transport } from "./link.js"
import { here } from "./platform.js"
import { overSse } from "./sse.js"
import { ManyRuns, OneRun } from "./streams.js"
import { triggered } from "./trigger.js"
import type {
  Client,
  ClientOptions,
  Filter,
  FollowOptions,
  FrameStream,
  RunOptions,
  RunStream,
  WatchOptions,
} from "./types.js"

const PING_INTERVAL_MS = 15_000

/** A run that could not be triggered for so long is not triggered later, when nobody may want it any more. */
const TRIGGER_PATIENCE_MS = 60_000

/** Returns a client of a server. */
export function createClient(options: ClientOptions = {}): Client {
  return new StreamClient(options)
}

class StreamClient implements Client {
  readonly #options: ClientOptions
  readonly #server: Server
  readonly #transport: Transport
  readonly #streams = new Set<{ close(): void }>()

  constructor(options: ClientOptions) {
    this.#options = options
    const platform = { ...here(), ...options.platform }
    const baseUrl = (options.baseUrl ?? "").replace(/\/+$/, "")
    this.#server = { baseUrl, auth: options.auth ?? "cookie", platform }
    this.#transport = transportOf(this.#server, options)
  }

  watch(dagId: string, runId: string, options: WatchOptions = {}): RunStream {
    const key = { dagId, runId }
    const open = this.#transport.open(askForRun(key, options))
    const stream = new OneRun(open, this.#server.platform, this.#linkOptions(), options)
    stream.begin(key)
    return this.#keep(stream)
  }

  run(dagId: string, conf: Readonly<Record<string, unknown>> = {}, options: RunOptions = {}): RunStream {
    let begun = false
    const open = triggered(this.#server, {
      dagId,
      conf,
      options,
      streams: this.#transport.streamsPosts,
      watch: (key) => this.#transport.open(askForRun(key, options)),
      onBegun: (key) => {
        begun = true
        stream.begin(key)
      },
    })
    const { patienceMs, ...others } = this.#linkOptions()
    const patience = () => (begun ? patienceMs() : Math.min(patienceMs(), TRIGGER_PATIENCE_MS))
    const stream = new OneRun(open, this.#server.platform, { ...others, patienceMs: patience }, options)
    return this.#keep(stream)
  }

  follow(filter: Filter = {}, options: FollowOptions = {}): FrameStream {
    const open = this.#transport.open(askForRuns(filter))
    const linkOptions = { ...this.#linkOptions(), cursor: options.cursor ?? null }
    return this.#keep(new ManyRuns(open, this.#server.platform, linkOptions, options.signal))
  }

  async cancel(dagId: string, runId: string): Promise<string | null> {
    const path = `${runPath({ dagId, runId })}/cancel`
    const answer = (await this.#post(path)) as { state?: string | null }
    return answer.state ?? null
  }

  close(): void {
    for (const stream of this.#streams) stream.close()
    this.#streams.clear()
    this.#transport.close()
  }

  /** Sends a request, once more with another credential where one can be had and the first is refused. */
  async #post(path: string, refresh = false): Promise<unknown> {
    const address = addressOf(this.#server, path, new URLSearchParams())
    const response = await send(this.#server, address, { method: "POST" }, refresh)
    if (response.ok) return response.json()
    const step = judge(await refusal(response), !refresh && isRenewable(this.#server.auth))
    if (step.kind === "again" && step.refresh) return this.#post(path, true)
    throw step.kind === "stop" ? new StreamError("refused", "There is no answer") : step.error
  }

  #linkOptions(): LinkOptions {
    return {
      renewable: isRenewable(this.#server.auth),
      patienceMs: () => this.#options.patienceMs ?? Number.POSITIVE_INFINITY,
      pingIntervalMs: this.#options.pingIntervalMs ?? PING_INTERVAL_MS,
    }
  }

  /** Remembers a stream as long as it goes on, to close it with the client. */
  #keep<Stream extends OneRun | ManyRuns>(stream: Stream): Stream {
    this.#streams.add(stream)
    void stream.done.then(() => this.#streams.delete(stream))
    return stream
  }
}

function transportOf(server: Server, { transport = "sse", shareAs }: ClientOptions): Transport {
  const sse = (ask: Ask) => overSse(server, pathOf(ask), queryOf(ask))
  if (shareAs === undefined && transport === "sse") return { open: sse, streamsPosts: true, close: () => {} }
  // What is not used need not be loaded.
  const sockets = import("./sockets.js").then(({ overSockets }) => overSockets(server, transport, shareAs, sse))
  const instead: Transport = { open: sse, streamsPosts: false, close: () => {} }
  const transports = sockets.catch(() => instead)
  return {
    open: (ask) => {
      const opened = transports.then((loaded) => loaded.open(ask))
      return async (attempt, hear) => (await opened)(attempt, hear)
    },
    streamsPosts: false,
    close: () => void transports.then((loaded) => loaded.close()),
  }
}
