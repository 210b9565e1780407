// Where conversations are kept over a reload: in this tab alone, by DAG.

import { type Conversation, isSameButForWords, kept } from "./conversation.js"

const PREFIX = "stream-server-chat:"

/**
 * Milliseconds between two writes while an answer comes. Each writes the whole conversation, so that one for each of
 * its words would cost the square of its length; what is lost with a page that crashes, the server tells again.
 */
export const REST = 1000

export function load(dagId: string): Conversation {
  try {
    const found: unknown = JSON.parse(sessionStorage.getItem(`${PREFIX}${dagId}`) ?? "[]")
    return Array.isArray(found) ? (found as Conversation) : []
  } catch {
    return []
  }
}

/** Keeps one conversation: what happens in it at once, the words of an answer now and then, and all of it in the end. */
export class Keeper {
  readonly #dagId: string
  #newest: Conversation
  #written: Conversation
  #timer: ReturnType<typeof setTimeout> | undefined

  /** @param turns the conversation as it was loaded */
  constructor(dagId: string, turns: Conversation) {
    this.#dagId = dagId
    this.#newest = turns
    this.#written = turns
  }

  keep(turns: Conversation): void {
    this.#newest = turns
    if (!isSameButForWords(this.#written, turns)) this.write()
    else this.#timer ??= setTimeout(this.write, REST)
  }

  /** Writes what was not written yet: the page may be gone in a moment. */
  readonly write = (): void => {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#written === this.#newest) return
    this.#written = this.#newest
    try {
      sessionStorage.setItem(`${PREFIX}${this.#dagId}`, JSON.stringify(kept(this.#newest)))
    } catch {
      // It is full. The conversation goes on, and would not survive a reload.
    }
  }
}

/** Return 128 random bits; `crypto.randomUUID` is there for https and localhost only. */
export function makeId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("")
}
