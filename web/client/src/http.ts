// Requests with the caller's credential, and what their answers mean.

import { retryAfterMs } from "./backoff.js"
import type { Ending } from "./endings.js"
import type { Auth, Platform } from "./types.js"

/** What a refused request tells at most. */
const LONGEST_DETAIL = 500

/** Where the server is, and who asks. */
export interface Server {
  /** Without a slash at its end; empty for where the page comes from. */
  readonly baseUrl: string
  readonly auth: Auth
  readonly platform: Platform
}

/** Whether another credential can be had when one is refused. */
export function isRenewable(auth: Auth): boolean {
  return typeof auth === "object" && ("ticket" in auth || typeof auth.bearer === "function")
}

/** Returns the bearer token, where there is one. */
export async function bearer(auth: Auth, refresh: boolean): Promise<string | null> {
  if (typeof auth !== "object" || !("bearer" in auth)) return null
  return typeof auth.bearer === "string" ? auth.bearer : await auth.bearer(refresh)
}

/** Returns the address of a path. */
export function addressOf(server: Server, path: string, query: URLSearchParams): string {
  return query.size > 0 ? `${server.baseUrl}${path}?${query}` : `${server.baseUrl}${path}`
}

/** Returns the address of a stream, with a ticket where tickets are used. */
export async function streamAddress(
  server: Server,
  path: string,
  query: URLSearchParams,
  cursor: string | null,
): Promise<string> {
  const asked = new URLSearchParams(query)
  if (cursor !== null) asked.set("cursor", cursor)
  if (typeof server.auth === "object" && "ticket" in server.auth) asked.set("ticket", await server.auth.ticket([path]))
  return addressOf(server, path, asked)
}

/** Sends a request with the caller's credential. */
export async function send(server: Server, address: string, init: RequestInit, refresh: boolean): Promise<Response> {
  const token = await bearer(server.auth, refresh)
  const headers = new Headers(init.headers)
  if (token !== null) headers.set("Authorization", `Bearer ${token}`)
  const credentials = server.auth === "none" || token !== null ? "omit" : "include"
  return server.platform.fetch(address, { ...init, headers, credentials, cache: "no-store" })
}

/** Returns why a request was refused. */
export async function refusal(response: Response): Promise<Ending & { kind: "refused" }> {
  const retryAfter = retryAfterMs(response.headers.get("Retry-After"), Date.now())
  return { kind: "refused", status: response.status, detail: await detailOf(response), retryAfterMs: retryAfter }
}

/** Returns what an `application/problem+json` body (RFC 9457) or one of Airflow's says, or the body itself. */
async function detailOf(response: Response): Promise<string> {
  const text = await response.text().catch(() => "")
  let detail: unknown
  try {
    detail = (JSON.parse(text) as { detail?: unknown }).detail
  } catch {
    // A proxy's page, perhaps.
  }
  return typeof detail === "string" ? detail : text.slice(0, LONGEST_DETAIL) || `HTTP ${response.status}`
}
