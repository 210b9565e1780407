// One connection for all tabs of a browser. The leading tab (leader_election.ts) opens streams for the other tabs, too,
// and sends them the frames. When it is gone, another tab leads, and all streams resume there from their cursors:
//
//   a stream's tab   event                              what follows
//   leader           stream is opened                   opened on the tab's own connection
//   candidate        stream is opened                   `subscribe` to the leader
//   candidate        no answer within ANSWER_TIMEOUT    take over: a suspended tab holds its locks, but sends nothing
//   candidate        another tab is elected             answered streams end as lost: reconnection.ts opens them again.
//                                                       Unanswered ones are sent to the new leader
//   candidate        this tab is elected                the same, but unanswered streams are opened here
//   leader           another tab takes over             all connections are closed
//   leader           the tab of a stream is gone        its streams are closed
//
// Tabs never send each other a credential: the leader uses its own.

import { createRandomId } from "../random_id.js"
import type { MultiplexedConnection } from "../transport/multiplex.js"
import type { StreamRequest } from "../transport/stream_request.js"
import {
  type ConnectionEnd,
  type ConnectOptions,
  type Connector,
  DEAD,
  lost,
  type OnFrames,
} from "../transport/transport.js"
import type { Clock } from "../types.js"
import { LeaderElection } from "./leader_election.js"
import { channelName, type TabMessage } from "./tab_messages.js"

/** A stream that this tab reads. */
interface TabStream {
  readonly request: StreamRequest
  readonly options: ConnectOptions
  readonly onFrames: OnFrames
  readonly finish: (end: ConnectionEnd) => void
  /** Whether the leader has responded. */
  isAnswered: boolean
}

const ANSWER_TIMEOUT_MS = 5_000

export interface SharedConnectionOptions {
  /** Tabs with the same name share a connection. */
  readonly name: string
  readonly locks: LockManager
  readonly BroadcastChannel: typeof BroadcastChannel
  readonly clock: Clock
  /** The connection that this tab uses as the leader. */
  readonly ownConnection: MultiplexedConnection
}

export class SharedConnection {
  readonly #options: SharedConnectionOptions
  readonly #tabId = createRandomId()
  readonly #channel: BroadcastChannel
  readonly #election: LeaderElection
  /** Streams that this tab reads, by id. */
  readonly #streams = new Map<string, TabStream>()
  /** Streams that this tab has opened for other tabs, by tab and id. */
  readonly #served = new Map<string, Map<string, AbortController>>()
  /** Streams that this tab has opened for itself. */
  readonly #own = new Set<AbortController>()
  #lastId = 0

  constructor(options: SharedConnectionOptions) {
    this.#options = options
    const name = channelName(options.name)
    this.#channel = new options.BroadcastChannel(name)
    this.#channel.onmessage = ({ data }: MessageEvent<TabMessage>) => this.#receive(data)
    this.#election = new LeaderElection({
      lockName: name,
      tabId: this.#tabId,
      locks: options.locks,
      onElected: () => this.#startLeading(),
      onDismissed: () => this.#stopLeading(),
    })
  }

  /** Return a connector that uses the leader's connection, whichever tab leads. */
  createConnector(request: StreamRequest): Connector {
    return async (options, onFrames) => {
      await this.#election.ready
      return new Promise((resolve) => this.#openStream(request, options, onFrames, resolve))
    }
  }

  close(): void {
    this.#election.close()
    this.#options.ownConnection.close()
    this.#channel.close()
  }

  #openStream(
    request: StreamRequest,
    options: ConnectOptions,
    onFrames: OnFrames,
    resolve: (end: ConnectionEnd) => void,
  ): void {
    const id = String(++this.#lastId)
    const finish = (end: ConnectionEnd) => {
      this.#streams.delete(id)
      options.signal.removeEventListener("abort", abort)
      resolve(end)
    }
    const stream: TabStream = { request, options, onFrames, finish, isAnswered: false }
    const abort = () => {
      const isDead = options.signal.reason === DEAD
      if (!this.#election.isLeader) this.#post({ kind: "unsubscribe", from: this.#tabId, id, isDead })
      finish(lost("Aborted"))
    }
    this.#streams.set(id, stream)
    options.signal.addEventListener("abort", abort)
    if (options.signal.aborted) abort()
    else if (this.#election.isLeader) void this.#openHere(stream)
    else this.#subscribe(id, stream)
  }

  async #openHere({ request, options, onFrames, finish }: TabStream): Promise<void> {
    const connection = new AbortController()
    options.signal.addEventListener("abort", () => connection.abort(options.signal.reason))
    this.#own.add(connection)
    const connector = this.#options.ownConnection.createConnector(request)
    finish(await connector({ ...options, signal: connection.signal }, onFrames))
    this.#own.delete(connection)
  }

  #subscribe(id: string, { request, options }: TabStream): void {
    const { cursor, refresh } = options
    this.#post({ kind: "subscribe", from: this.#tabId, id, request, cursor, refresh })
    this.#options.clock.after(ANSWER_TIMEOUT_MS, () => {
      const isUnanswered = this.#streams.get(id)?.isAnswered === false
      if (isUnanswered && !this.#election.isLeader) this.#election.takeOver()
    })
  }

  #receive(message: TabMessage): void {
    if (message.kind === "leader") this.#switchLeader()
    else if (message.kind === "subscribe") this.#serve(message)
    else if (message.kind === "unsubscribe")
      this.#served
        .get(message.from)
        ?.get(message.id)
        ?.abort(message.isDead ? DEAD : undefined)
    else if (message.to === this.#tabId) this.#receiveFromLeader(message)
  }

  #receiveFromLeader(message: TabMessage & { readonly kind: "frames" | "end" }): void {
    const stream = this.#streams.get(message.id)
    if (stream === undefined) return
    stream.isAnswered = true
    if (message.kind === "frames" && message.frames.length > 0) stream.onFrames(message.frames)
    if (message.kind === "end") stream.finish(message.end)
  }

  #switchLeader(): void {
    for (const [id, stream] of [...this.#streams]) {
      if (stream.isAnswered) stream.finish(lost("Another tab holds the connection now"))
      else this.#subscribe(id, stream)
    }
  }

  /** Open a stream for another tab. */
  #serve({ from, id, request, cursor, refresh }: TabMessage & { readonly kind: "subscribe" }): void {
    if (!this.#election.isLeader) return
    const streams = this.#streamsServedTo(from)
    // A tab that subscribes while the leader changes does so twice: before and after the `leader` message.
    if (streams.has(id)) return
    const connection = new AbortController()
    streams.set(id, connection)
    const onFrames: OnFrames = (frames) => this.#post({ kind: "frames", to: from, id, frames })
    // Acknowledge at once: the first frame may take longer than the timeout.
    onFrames([])
    void this.#options.ownConnection
      .createConnector(request)({ cursor, refresh, signal: connection.signal }, onFrames)
      .then((end) => {
        streams.delete(id)
        this.#post({ kind: "end", to: from, id, end })
      })
  }

  #streamsServedTo(tabId: string): Map<string, AbortController> {
    const known = this.#served.get(tabId)
    if (known !== undefined) return known
    const streams = new Map<string, AbortController>()
    this.#served.set(tabId, streams)
    this.#election.onTabGone(tabId, () => this.#closeServed(tabId))
    return streams
  }

  #closeServed(tabId: string): void {
    for (const connection of this.#served.get(tabId)?.values() ?? []) connection.abort()
    this.#served.delete(tabId)
  }

  #startLeading(): void {
    this.#post({ kind: "leader" })
    for (const stream of [...this.#streams.values()]) {
      if (stream.isAnswered) stream.finish(lost("This tab holds the connection now"))
      else void this.#openHere(stream)
    }
  }

  #stopLeading(): void {
    for (const tabId of [...this.#served.keys()]) this.#closeServed(tabId)
    for (const connection of this.#own) connection.abort()
  }

  #post(message: TabMessage): void {
    if (!this.#election.isClosed) this.#channel.postMessage(message)
  }
}
