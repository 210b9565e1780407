// Where conversations are kept over a reload: in this tab alone, by DAG.

import { type Conversation, kept } from "./conversation.js"

const PREFIX = "stream-server-chat:"

export function load(dagId: string): Conversation {
  try {
    const found: unknown = JSON.parse(sessionStorage.getItem(`${PREFIX}${dagId}`) ?? "[]")
    return Array.isArray(found) ? (found as Conversation) : []
  } catch {
    return []
  }
}

export function save(dagId: string, turns: Conversation): void {
  try {
    sessionStorage.setItem(`${PREFIX}${dagId}`, JSON.stringify(kept(turns)))
  } catch {
    // It is full. The conversation goes on, and would not survive a reload.
  }
}

/** Return 128 random bits; `crypto.randomUUID` is there for https and localhost only. */
export function makeId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("")
}
