// One connection for all tabs of a browser. The tab that holds a lock leads: it opens streams for the others, too, and
// sends them what it hears. When it is gone, the lock is another's, and all streams go on where they were.
//
// No token goes from tab to tab: the leader asks with its own credential.

import type { Ask } from "./asks.js"
import type { Ending } from "./endings.js"
import type { Frame } from "./frames.js"
import type { Attempt, Hear, Open } from "./link.js"
import type { Multiplex } from "./multiplex.js"
import type { Clock } from "./types.js"

/** What tabs say to each other. `to` and `from` are names of tabs. */
type Message =
  | { readonly kind: "lead" }
  | {
      readonly kind: "open"
      readonly from: string
      readonly id: string
      readonly ask: Ask
      readonly cursor: string | null
      readonly refresh: boolean
    }
  | { readonly kind: "leave"; readonly from: string; readonly id: string }
  | { readonly kind: "frames"; readonly to: string; readonly id: string; readonly frames: readonly Frame[] }
  | { readonly kind: "ending"; readonly to: string; readonly id: string; readonly ending: Ending }

/** A stream of this tab's. */
interface Stream {
  readonly ask: Ask
  readonly attempt: Attempt
  readonly hear: Hear
  readonly over: (ending: Ending) => void
  /** Whether the leader has said anything about it. */
  answered: boolean
}

/** A leader that takes longer to answer is asleep. */
const ANSWER_MS = 5_000

/** Why a tab leaves the line: to go to its head. */
const TAKE_OVER = "take over"

export interface TabsOptions {
  readonly name: string
  readonly locks: LockManager
  readonly BroadcastChannel: typeof BroadcastChannel
  readonly clock: Clock
  /** The connection of this tab, when it leads. */
  readonly own: Multiplex
}

export class Tabs {
  /** Whether this tab leads. */
  leads = false
  readonly #options: TabsOptions
  readonly #tab = crypto.randomUUID()
  readonly #channel: BroadcastChannel
  readonly #streams = new Map<string, Stream>()
  /** What this tab has open for others, by tab and stream. */
  readonly #served = new Map<string, Map<string, AbortController>>()
  /** What this tab has open for itself. */
  readonly #own = new Set<AbortController>()
  readonly #closing = new AbortController()
  readonly #alive: Promise<void>
  /** This tab's place in the line of those who wait for the lead. */
  #line = new AbortController()
  #names = 0

  constructor(options: TabsOptions) {
    this.#options = options
    this.#channel = new options.BroadcastChannel(this.#lock())
    this.#channel.onmessage = ({ data }: MessageEvent<Message>) => this.#receive(data)
    this.#alive = new Promise((resolve) => {
      void this.#hold(this.#lock(this.#tab), { signal: this.#closing.signal }, resolve).then(() => resolve())
    })
    void this.#stand()
  }

  /** Returns how to open a stream, through whichever tab leads. */
  stream(ask: Ask): Open {
    return async (attempt, hear) => {
      // Others take a tab without its lock for one that is gone.
      await this.#alive
      return new Promise((resolve) => this.#open(ask, attempt, hear, resolve))
    }
  }

  close(): void {
    this.#standDown()
    this.#closing.abort()
    this.#line.abort()
    this.#options.own.close()
    this.#channel.close()
  }

  #open(ask: Ask, attempt: Attempt, hear: Hear, resolve: (ending: Ending) => void): void {
    const id = String(++this.#names)
    const over = (ending: Ending) => {
      this.#streams.delete(id)
      attempt.signal.removeEventListener("abort", leave)
      resolve(ending)
    }
    const stream: Stream = { ask, attempt, hear, over, answered: false }
    const leave = () => {
      if (!this.leads) this.#post({ kind: "leave", from: this.#tab, id })
      over({ kind: "cut", why: "Left" })
    }
    this.#streams.set(id, stream)
    attempt.signal.addEventListener("abort", leave)
    if (attempt.signal.aborted) leave()
    else if (this.leads) void this.#openHere(stream)
    else this.#ask(id, stream)
  }

  /** Asks the leader for a stream; one who does not answer is asleep, and is replaced. */
  #ask(id: string, stream: Stream): void {
    const { cursor, refresh } = stream.attempt
    this.#post({ kind: "open", from: this.#tab, id, ask: stream.ask, cursor, refresh })
    this.#options.clock.after(ANSWER_MS, () => {
      if (!stream.answered && !this.leads && this.#streams.has(id)) this.#line.abort(TAKE_OVER)
    })
  }

  async #openHere({ ask, attempt, hear, over }: Stream): Promise<void> {
    const connection = new AbortController()
    attempt.signal.addEventListener("abort", () => connection.abort())
    this.#own.add(connection)
    over(await this.#options.own.stream(ask)({ ...attempt, signal: connection.signal }, hear))
    this.#own.delete(connection)
  }

  #receive(message: Message): void {
    if (message.kind === "lead") this.#follow()
    else if (message.kind === "open") this.#serve(message)
    else if (message.kind === "leave") this.#served.get(message.from)?.get(message.id)?.abort()
    else if (message.to === this.#tab) this.#hear(message)
  }

  #hear(message: Message & { readonly kind: "frames" | "ending" }): void {
    const stream = this.#streams.get(message.id)
    if (stream === undefined) return
    stream.answered = true
    if (message.kind === "frames" && message.frames.length > 0) stream.hear(message.frames)
    if (message.kind === "ending") stream.over(message.ending)
  }

  /** Another tab leads from now on. */
  #follow(): void {
    for (const [id, stream] of [...this.#streams]) {
      if (stream.answered) stream.over({ kind: "cut", why: "Another tab holds the connection now" })
      else this.#ask(id, stream)
    }
  }

  #serve({ from, id, ask, cursor, refresh }: Message & { readonly kind: "open" }): void {
    if (!this.leads) return
    const streams = this.#servedTo(from)
    // Who asks while the lead changes asks twice.
    if (streams.has(id)) return
    const connection = new AbortController()
    streams.set(id, connection)
    const hear: Hear = (frames) => this.#post({ kind: "frames", to: from, id, frames })
    // That somebody is here.
    hear([])
    void this.#options.own
      .stream(ask)({ cursor, refresh, signal: connection.signal }, hear)
      .then((ending) => {
        streams.delete(id)
        this.#post({ kind: "ending", to: from, id, ending })
      })
  }

  /** Returns what is open for a tab. When that is gone, its lock is to be had. */
  #servedTo(tab: string): Map<string, AbortController> {
    const known = this.#served.get(tab)
    if (known !== undefined) return known
    const streams = new Map<string, AbortController>()
    this.#served.set(tab, streams)
    void this.#options.locks
      .request(this.#lock(tab), { signal: this.#closing.signal }, () => this.#forget(tab))
      .catch(() => {})
    return streams
  }

  #forget(tab: string): void {
    for (const connection of this.#served.get(tab)?.values() ?? []) connection.abort()
    this.#served.delete(tab)
  }

  /** Waits for the lead and holds it; whoever loses it stands in line again. */
  async #stand(): Promise<void> {
    await this.#alive
    let steal = false
    while (!this.#closing.signal.aborted) {
      this.#line = new AbortController()
      const { signal } = this.#line
      const held = await this.#hold(this.#lock(), steal ? { steal } : { signal }, () => this.#lead())
      this.#standDown()
      steal = signal.reason === TAKE_OVER
      // Where there are no locks to be had after all, each tab is on its own.
      if (!held && !signal.aborted) return this.#lead()
    }
  }

  #lead(): void {
    this.leads = true
    this.#post({ kind: "lead" })
    for (const stream of [...this.#streams.values()]) {
      if (stream.answered) stream.over({ kind: "cut", why: "This tab holds the connection now" })
      else void this.#openHere(stream)
    }
  }

  #standDown(): void {
    this.leads = false
    for (const tab of [...this.#served.keys()]) this.#forget(tab)
    for (const connection of this.#own) connection.abort()
  }

  /** Holds a lock until this is closed, or the lock is taken away; returns whether it was ever held. */
  async #hold(name: string, how: LockOptions, onHeld: () => void): Promise<boolean> {
    const { signal } = this.#closing
    let held = false
    const holding = () =>
      new Promise<void>((resolve) => {
        held = true
        signal.addEventListener("abort", () => resolve())
        if (signal.aborted) resolve()
        else onHeld()
      })
    await this.#options.locks.request(name, how, holding).catch(() => {})
    return held
  }

  #lock(tab = ""): string {
    return `airflow-stream:${this.#options.name}:${tab}`
  }

  #post(message: Message): void {
    if (!this.#closing.signal.aborted) this.#channel.postMessage(message)
  }
}
