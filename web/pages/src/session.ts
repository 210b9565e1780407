// Whether somebody must sign in, for all that is on the page. One store, so that one form is enough for everything that waits.

import { useSyncExternalStore } from "react"
import { ask } from "./server.js"

export interface SessionState {
  /** Whether the server wants to know who asks. */
  readonly needed: boolean
  /** Why, in the server's words. */
  readonly reason: string
  /** Grows whenever somebody has signed in: what was refused is tried again then. */
  readonly generation: number
}

const WHO = "stream-server-who"
const PATH = "/api/v2/stream/session"

let state: SessionState = { needed: false, reason: "", generation: 0 }
const listeners = new Set<() => void>()

export function useSession(): SessionState {
  return useSyncExternalStore(subscribe, () => state)
}

/** Say that the server wants to know who asks. */
export function signInNeeded(reason: string): void {
  if (!state.needed) change({ ...state, needed: true, reason })
}

export async function signIn(who: { username: string; password: string } | { token: string }): Promise<void> {
  await ask(PATH, { method: "POST", body: JSON.stringify(who), headers: { "Content-Type": "application/json" } })
  begun()
}

/** Go on after somebody has signed in, here or in Airflow. */
export function begun(): void {
  localStorage.setItem(WHO, `${Date.now()}`)
  change({ needed: false, reason: "", generation: state.generation + 1 })
}

export async function signOut(): Promise<void> {
  await ask(PATH, { method: "DELETE" })
  localStorage.setItem(WHO, `${Date.now()}`)
  location.assign("/")
}

/** Return the name under which tabs share a connection: another one after each sign-in, since it has the rights of one. */
export function sharedName(): string {
  return `stream-server-pages-${localStorage.getItem(WHO) ?? ""}`
}

function change(next: SessionState): void {
  state = next
  for (const listener of listeners) listener()
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener)
  return () => listeners.delete(listener)
}
