// Stores conversations, so that they survive a reload: per DAG, in this tab only.

import { type Conversation, differsOnlyInText, dropOldTurns } from "./conversation.js"

const PREFIX = "stream-server-chat:"

/**
 * Milliseconds between two writes while an answer arrives. Each write contains the whole conversation: one per word would be
 * quadratic in its length. If the page crashes, the server sends the lost part again.
 */
export const SAVE_INTERVAL_MS = 1000

export function loadConversation(dagId: string): Conversation {
  try {
    const stored: unknown = JSON.parse(sessionStorage.getItem(`${PREFIX}${dagId}`) ?? "[]")
    return Array.isArray(stored) ? (stored as Conversation) : []
  } catch {
    return []
  }
}

/** Saves a conversation: its text in intervals, other changes at once. */
export class ConversationSaver {
  readonly #dagId: string
  #latest: Conversation
  #saved: Conversation
  #timer: ReturnType<typeof setTimeout> | undefined

  /** @param turns the conversation as it is stored */
  constructor(dagId: string, turns: Conversation) {
    this.#dagId = dagId
    this.#latest = turns
    this.#saved = turns
  }

  update(turns: Conversation): void {
    this.#latest = turns
    if (!differsOnlyInText(this.#saved, turns)) this.save()
    else this.#timer ??= setTimeout(this.save, SAVE_INTERVAL_MS)
  }

  /** Save the last update now, for example because the page is about to be closed. */
  readonly save = (): void => {
    clearTimeout(this.#timer)
    this.#timer = undefined
    if (this.#saved === this.#latest) return
    this.#saved = this.#latest
    try {
      sessionStorage.setItem(`${PREFIX}${this.#dagId}`, JSON.stringify(dropOldTurns(this.#latest)))
    } catch {
      // The storage is full. The conversation works, but would not survive a reload.
    }
  }
}

/** Return 128 random bits. Not `crypto.randomUUID`, which browsers provide for https and localhost only. */
export function createId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("")
}
