// HTTP requests with the caller's credential, and what their responses mean.

import type { Auth, Platform } from "../types.js"
import type { ConnectionEnd } from "./transport.js"

const MAX_DETAIL_LENGTH = 500

/** Where the server is, and how to authenticate there. */
export interface ServerAccess {
  /** Without a trailing slash; empty for the origin of the page. */
  readonly baseUrl: string
  readonly auth: Auth
  readonly platform: Platform
}

/** Whether a new credential can be obtained when one is refused. */
export function canRenewCredential(auth: Auth): boolean {
  return typeof auth === "object" && ("ticket" in auth || typeof auth.bearer === "function")
}

/** Return the bearer token, or `null` for other kinds of credentials. */
export async function getBearerToken(auth: Auth, refresh: boolean): Promise<string | null> {
  if (typeof auth !== "object" || !("bearer" in auth)) return null
  return typeof auth.bearer === "string" ? auth.bearer : await auth.bearer(refresh)
}

export function buildUrl(server: ServerAccess, path: string, query: URLSearchParams): string {
  // Not `query.size`, which older browsers don't have.
  const text = query.toString()
  return server.baseUrl + path + (text && `?${text}`)
}

/** Return the URL of a stream, with a new ticket if tickets are used: each ticket opens one connection. */
export async function buildStreamUrl(
  server: ServerAccess,
  path: string,
  query: URLSearchParams,
  cursor: string | null,
): Promise<string> {
  const full = new URLSearchParams(query)
  if (cursor !== null) full.set("cursor", cursor)
  if (typeof server.auth === "object" && "ticket" in server.auth) full.set("ticket", await server.auth.ticket([path]))
  return buildUrl(server, path, full)
}

export async function sendRequest(
  server: ServerAccess,
  url: string,
  init: RequestInit,
  refresh: boolean,
): Promise<Response> {
  const token = await getBearerToken(server.auth, refresh)
  const headers = new Headers(init.headers)
  if (token !== null) headers.set("Authorization", `Bearer ${token}`)
  const credentials = server.auth === "none" || token !== null ? "omit" : "include"
  return server.platform.fetch(url, { ...init, headers, credentials, cache: "no-store" })
}

/** Read the reason from a response whose status is an error. */
export async function readRefusal(response: Response): Promise<ConnectionEnd & { kind: "refused" }> {
  const retryAfterMs = parseRetryAfter(response.headers.get("Retry-After"), Date.now())
  return { kind: "refused", status: response.status, detail: await readDetail(response), retryAfterMs }
}

/** Return the `detail` of an `application/problem+json` body (RFC 9457) or of an error of Airflow, else the body itself. */
async function readDetail(response: Response): Promise<string> {
  const text = await response.text().catch(() => "")
  let detail: unknown
  try {
    detail = (JSON.parse(text) as { detail?: unknown }).detail
  } catch {
    // Not JSON: probably the error page of a proxy.
  }
  return typeof detail === "string" ? detail : text.slice(0, MAX_DETAIL_LENGTH) || `HTTP ${response.status}`
}

/**
 * Parse the header `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date.
 *
 * @returns milliseconds; `null` if the header is missing or malformed
 */
export function parseRetryAfter(header: string | null, epochMs: number): number | null {
  if (header === null) return null
  if (/^\d+$/.test(header)) return Number(header) * 1000
  const date = Date.parse(header)
  return Number.isNaN(date) ? null : Math.max(0, date - epochMs)
}
