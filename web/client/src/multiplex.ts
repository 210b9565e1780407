// Many streams on one WebSocket. It is opened for the first stream, and closed after the last.

import { ALL_RUNS, type Ask } from "./asks.js"
import type { Ending } from "./endings.js"
import type { Frame } from "./frames.js"
import type { Server } from "./http.js"
import type { Attempt, Hear, Open } from "./link.js"
import { openSocket, refusalIn, signInAnew } from "./websocket.js"

/** How long a connection without streams is kept: who goes to another page of an application needs it again at once. */
const LINGER_MS = 1_000

/** Why a connection is left: for another one with another credential. */
const RENEWED = "renewed"

interface Member {
  /** Whether the server has yet to hear of it. */
  waits: boolean
  readonly message: object
  readonly hear: Hear
  readonly over: (ending: Ending) => void
}

export class Multiplex {
  readonly #server: Server
  readonly #members = new Map<string, Member>()
  #names = 0
  #socket: WebSocket | null = null
  #connection: AbortController | null = null
  #stopLingering: (() => void) | null = null
  /** Whether another credential was told; while that is on its way, for all who want it. */
  #renewing: Promise<boolean> | null = null

  constructor(server: Server) {
    this.#server = server
  }

  /** Returns how to open a stream. */
  stream(ask: Ask): Open {
    return (attempt, hear) => new Promise((resolve) => this.#join(ask, attempt, hear, resolve))
  }

  close(): void {
    this.#stopLingering?.()
    this.#connection?.abort()
  }

  #join(ask: Ask, { cursor, refresh, signal }: Attempt, hear: Hear, resolve: (ending: Ending) => void): void {
    const id = `s${++this.#names}`
    const leave = () => {
      if (this.#members.has(id)) this.#tell({ op: "unsubscribe", id })
      this.#leave(id)
      over({ kind: "cut", why: "Left" })
    }
    const over = (ending: Ending) => {
      signal.removeEventListener("abort", leave)
      resolve(ending)
    }
    const message = { op: "subscribe", id, ...ask, ...(cursor === null ? {} : { cursor }) }
    const member = { message, hear, over, waits: true }
    this.#members.set(id, member)
    signal.addEventListener("abort", leave)
    this.#stopLingering?.()
    if (this.#connection === null) void this.#connect(refresh)
    else if (refresh) void this.#renew(this.#connection)
    else this.#subscribe()
  }

  /** Subscribes with another credential, on the same connection where it can be told there, else on another one. */
  async #renew(connection: AbortController): Promise<void> {
    if (this.#socket === null) return
    this.#renewing ??= signInAnew(this.#server, this.#socket)
    const signedIn = await this.#renewing
    this.#renewing = null
    if (signedIn) this.#subscribe()
    else connection.abort(RENEWED)
  }

  /** Tells the server of the streams that it has not heard of, as soon as it is there. */
  #subscribe(): void {
    if (this.#socket === null || this.#renewing !== null) return
    for (const member of this.#members.values()) {
      if (member.waits) this.#tell(member.message)
      member.waits = false
    }
  }

  async #connect(refresh: boolean): Promise<void> {
    const connection = new AbortController()
    this.#connection = connection
    const attempt = { cursor: null, refresh, signal: connection.signal }
    const ending = await openSocket(this.#server, ALL_RUNS, new URLSearchParams(), attempt, {
      onOpen: (socket) => {
        this.#socket = socket
        this.#subscribe()
      },
      onFrame: (frame) => {
        this.#hear(frame)
        return undefined
      },
    }).catch((error): Ending => ({ kind: "cut", why: String(error) }))
    this.#socket = null
    this.#connection = null
    const renewed = connection.signal.reason === RENEWED
    for (const [id, { over, waits }] of [...this.#members]) {
      if (renewed && waits) continue
      this.#members.delete(id)
      over(ending)
    }
    if (renewed && this.#members.size > 0) await this.#connect(true)
  }

  #hear(frame: Frame): void {
    const id = "id" in frame ? frame.id : undefined
    if (id === undefined) {
      // What is said about the connection concerns all.
      for (const { hear } of [...this.#members.values()]) hear([frame])
      return
    }
    const member = this.#members.get(id)
    if (frame.type === "error") {
      this.#leave(id)
      member?.over(refusalIn(frame))
      return
    }
    // The server has forgotten the stream by now; there is nothing to unsubscribe from.
    if (frame.type === "end" || frame.type === "close") this.#leave(id)
    member?.hear([frame])
  }

  #tell(message: object): void {
    this.#socket?.send(JSON.stringify(message))
  }

  #leave(id: string): void {
    this.#members.delete(id)
    if (this.#members.size > 0 || this.#connection === null) return
    const connection = this.#connection
    this.#stopLingering?.()
    this.#stopLingering = this.#server.platform.clock.after(LINGER_MS, () => connection.abort())
  }
}
