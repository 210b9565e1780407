// Whether the user has to sign in. One store for the page, so that one form serves all requests that were refused.

import { useSyncExternalStore } from "react"
import { fetchJson } from "../api/api.js"
import { URL_PREFIX } from "../urlPrefix.js"

export interface SignInState {
  readonly isSignInRequired: boolean
  /** The server's reason. */
  readonly reason: string
  /** Number of sign-ins on this page. Each one repeats the requests and streams that were refused. */
  readonly signInCount: number
}

/** Key in `localStorage`, which all tabs see, of the time of the last sign-in or sign-out. */
const SIGN_IN_KEY = "stream-server-who"
const PATH = "/api/v2/stream/session"

let state: SignInState = { isSignInRequired: false, reason: "", signInCount: 0 }
const listeners = new Set<() => void>()

export function useSignInState(): SignInState {
  return useSyncExternalStore(subscribe, () => state)
}

/** Show the sign-in form. */
export function requireSignIn(reason: string): void {
  if (!state.isSignInRequired) setState({ ...state, isSignInRequired: true, reason })
}

export async function signIn(credential: { username: string; password: string } | { token: string }): Promise<void> {
  const headers = { "Content-Type": "application/json" }
  await fetchJson(PATH, { method: "POST", body: JSON.stringify(credential), headers })
  completeSignIn()
}

/** Continue after a sign-in, on this page or in Airflow's UI. */
export function completeSignIn(): void {
  localStorage.setItem(SIGN_IN_KEY, `${Date.now()}`)
  setState({ isSignInRequired: false, reason: "", signInCount: state.signInCount + 1 })
}

export async function signOut(): Promise<void> {
  await fetchJson(PATH, { method: "DELETE" })
  localStorage.setItem(SIGN_IN_KEY, `${Date.now()}`)
  location.assign(`${URL_PREFIX}/`)
}

/** Return the name under which tabs share a connection. It changes with each sign-in: permissions differ between users. */
export function getConnectionName(): string {
  return `stream-server-pages-${localStorage.getItem(SIGN_IN_KEY) ?? ""}`
}

function setState(next: SignInState): void {
  state = next
  for (const listener of listeners) listener()
}

function subscribe(listener: () => void): () => void {
  listeners.add(listener)
  return () => listeners.delete(listener)
}
