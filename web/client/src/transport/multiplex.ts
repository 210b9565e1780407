// Many streams on one WebSocket. It is opened for the first stream, and closed after the last.

import type { Frame } from "../protocol/frames.js"
import type { ServerAccess } from "./http.js"
import { MULTI_RUN_PATH, type StreamRequest } from "./stream_request.js"
import { type ConnectionEnd, type ConnectOptions, type Connector, DEAD, lost, type OnFrames } from "./transport.js"
import { openWebSocket, refusalOf, renewToken } from "./websocket.js"

/** How long a connection without streams is kept: the next view of an application often needs it again at once. */
const IDLE_CLOSE_MS = 1_000

/** A connection with a frame in this time is not dead, whatever one of its streams takes it for. */
const TRUSTED_MS = 1_000

/** Abort reason of a connection that is replaced by one with a new credential. */
const REPLACED = "replaced"

interface Subscription {
  /** Whether the `subscribe` message has yet to be sent. */
  isPending: boolean
  readonly message: object
  readonly onFrames: OnFrames
  readonly finish: (end: ConnectionEnd) => void
}

export class MultiplexedConnection {
  readonly #server: ServerAccess
  readonly #subscriptions = new Map<string, Subscription>()
  #lastId = 0
  #lastFrameAt = 0
  /** `null` while there is no open WebSocket; set later than `#connection`. */
  #socket: WebSocket | null = null
  #connection: AbortController | null = null
  #cancelIdleClose: (() => void) | null = null
  /** Resolves to whether a new token was sent. All streams that need one at the same time share this promise. */
  #renewal: Promise<boolean> | null = null

  constructor(server: ServerAccess) {
    this.#server = server
  }

  createConnector(request: StreamRequest): Connector {
    return (options, onFrames) => new Promise((resolve) => this.#subscribe(request, options, onFrames, resolve))
  }

  close(): void {
    this.#cancelIdleClose?.()
    this.#connection?.abort()
  }

  #subscribe(
    request: StreamRequest,
    { cursor, refresh, signal }: ConnectOptions,
    onFrames: OnFrames,
    resolve: (end: ConnectionEnd) => void,
  ): void {
    const id = `s${++this.#lastId}`
    const unsubscribe = () => {
      if (this.#subscriptions.has(id)) this.#send({ op: "unsubscribe", id })
      this.#remove(id)
      finish(lost("Aborted"))
      if (signal.reason === DEAD) this.#replaceDeadConnection()
    }
    const finish = (end: ConnectionEnd) => {
      signal.removeEventListener("abort", unsubscribe)
      resolve(end)
    }
    const message = { op: "subscribe", id, ...request, ...(cursor === null ? {} : { cursor }) }
    this.#subscriptions.set(id, { message, onFrames, finish, isPending: true })
    signal.addEventListener("abort", unsubscribe)
    this.#cancelIdleClose?.()
    if (this.#connection === null) void this.#connect(refresh)
    else if (refresh) void this.#renewCredential(this.#connection)
    else this.#sendPending()
  }

  /** Send a new token on this connection; replace the connection if that is not possible, as with tickets. */
  async #renewCredential(connection: AbortController): Promise<void> {
    if (this.#socket === null) return
    this.#renewal ??= renewToken(this.#server, this.#socket)
    const isRenewed = await this.#renewal
    this.#renewal = null
    if (isRenewed) this.#sendPending()
    else connection.abort(REPLACED)
  }

  /** Send the pending subscriptions; not before a new token, since the server would refuse them with the old one. */
  #sendPending(): void {
    if (this.#socket === null || this.#renewal !== null) return
    for (const subscription of this.#subscriptions.values()) {
      if (subscription.isPending) this.#send(subscription.message)
      subscription.isPending = false
    }
  }

  async #connect(refresh: boolean): Promise<void> {
    const connection = new AbortController()
    this.#connection = connection
    this.#lastFrameAt = this.#server.platform.clock.now()
    const options = { cursor: null, refresh, signal: connection.signal }
    const end = await openWebSocket(this.#server, MULTI_RUN_PATH, new URLSearchParams(), options, {
      onOpen: (socket) => {
        this.#socket = socket
        this.#sendPending()
      },
      onFrame: (frame) => {
        this.#dispatch(frame)
        return undefined
      },
    }).catch((error) => lost(String(error)))
    this.#socket = null
    this.#connection = null
    const isReplaced = connection.signal.reason === REPLACED
    for (const [id, { finish, isPending }] of [...this.#subscriptions]) {
      // Pending streams are subscribed on the new connection. The others reconnect by themselves, with their cursor.
      if (isReplaced && isPending) continue
      this.#subscriptions.delete(id)
      finish(end)
    }
    if (isReplaced && this.#subscriptions.size > 0) await this.#connect(true)
  }

  /** All other streams end as lost, and connect again with their cursors. */
  #replaceDeadConnection(): void {
    const { clock } = this.#server.platform
    if (clock.now() - this.#lastFrameAt >= TRUSTED_MS) this.#connection?.abort()
  }

  #dispatch(frame: Frame): void {
    this.#lastFrameAt = this.#server.platform.clock.now()
    const id = "id" in frame ? frame.id : undefined
    if (id === undefined) {
      // A frame without an id, such as `ping`, is about the connection: for each stream a sign that it is alive.
      for (const { onFrames } of [...this.#subscriptions.values()]) onFrames([frame])
      return
    }
    const subscription = this.#subscriptions.get(id)
    if (frame.type === "error") {
      this.#remove(id)
      subscription?.finish(refusalOf(frame))
      return
    }
    // The server has removed the stream. Removed here first, so that closing it sends no `unsubscribe`.
    if (frame.type === "end" || frame.type === "close") this.#remove(id)
    subscription?.onFrames([frame])
  }

  #send(message: object): void {
    this.#socket?.send(JSON.stringify(message))
  }

  #remove(id: string): void {
    this.#subscriptions.delete(id)
    if (this.#subscriptions.size > 0 || this.#connection === null) return
    const connection = this.#connection
    this.#cancelIdleClose?.()
    this.#cancelIdleClose = this.#server.platform.clock.after(IDLE_CLOSE_MS, () => connection.abort())
  }
}
