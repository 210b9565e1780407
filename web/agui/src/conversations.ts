// The messages of threads, which a page needs after a reload: the server keeps runs, not conversations.

import type { Message } from "@ag-ui/client"

/** Where conversations are kept; `sessionStorage` is one. */
export interface ConversationStorage {
  getItem(key: string): string | null
  setItem(key: string, value: string): void
}

export function detectStorage(): ConversationStorage | null {
  try {
    return globalThis.sessionStorage ?? null
  } catch {
    // Browsers throw where the user has blocked it.
    return null
  }
}

export class Conversations {
  readonly #storage: ConversationStorage | null
  readonly #prefix: string

  constructor(storage: ConversationStorage | null, dagId: string) {
    this.#storage = storage
    this.#prefix = `airflow-stream-agui/${dagId}/`
  }

  load(threadId: string): Message[] {
    try {
      const messages: unknown = JSON.parse(this.#storage?.getItem(this.#prefix + threadId) ?? "[]")
      return Array.isArray(messages) ? messages : []
    } catch {
      return []
    }
  }

  save(threadId: string, messages: readonly Message[]): void {
    const kept = messages.filter(({ role }) => role !== "activity")
    if (kept.length === 0) return
    try {
      this.#storage?.setItem(this.#prefix + threadId, JSON.stringify(kept))
    } catch {
      // It is full. A reload shows the last messages that fitted.
    }
  }
}
