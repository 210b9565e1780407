// Requests to the server that are not streams.

import { URL_PREFIX } from "../urlPrefix.js"

export interface RunItem {
  readonly dag_id: string
  readonly run_id: string
  readonly state: string
  readonly run_type: string
  readonly queued_at: string | null
  readonly start_date: string | null
  readonly end_date: string | null
}

export interface RunList {
  readonly runs: readonly RunItem[]
  /** Where to start a stream of transitions, so that none is missed after this list. */
  readonly cursor: string
}

export interface DagList {
  readonly dags: readonly {
    readonly dag_id: string
    readonly description: string | null
    readonly is_paused: boolean
  }[]
}

export interface TaskNode {
  readonly task_id: string
  readonly group_id: string | null
  readonly operator: string
  readonly is_mapped: boolean
  readonly is_setup: boolean
  readonly is_teardown: boolean
  readonly is_result: boolean
}

export interface Structure {
  readonly nodes: readonly TaskNode[]
  readonly groups: readonly {
    readonly group_id: string
    readonly parent_id: string | null
    readonly is_mapped: boolean
  }[]
  readonly edges: readonly { readonly source: string; readonly target: string }[]
}

export interface Session {
  /** Whether the browser has a credential. */
  readonly signed_in: boolean
  readonly airflow_ui_url: string | null
  readonly can_sign_in: boolean
}

/** A response with an error status, as a problem (RFC 9457). */
export class ApiError extends Error {
  override readonly name = "Refused"
  readonly status: number

  constructor(status: number, detail: string) {
    super(detail)
    this.status = status
  }
}

export function messageOfError(error: unknown): string {
  return error instanceof Error ? error.message : `${error}`
}

/** Request JSON, with the browser's cookies. */
export async function fetchJson<Data>(path: string, init: RequestInit = {}): Promise<Data> {
  const response = await fetch(`${URL_PREFIX}${path}`, {
    ...init,
    headers: { Accept: "application/json", ...init.headers },
  })
  if (!response.ok) throw new ApiError(response.status, await readDetail(response))
  return (response.status === 204 ? undefined : await response.json()) as Data
}

/** Return the path of a run in the server's API. */
export function buildRunApiPath(dagId: string, runId: string): string {
  return `/api/v2/dags/${encodeURIComponent(dagId)}/dagRuns/${encodeURIComponent(runId)}`
}

async function readDetail(response: Response): Promise<string> {
  const body: unknown = await response.json().catch(() => null)
  const detail = typeof body === "object" && body !== null && "detail" in body ? body.detail : null
  return typeof detail === "string" ? detail : `The server responded with status ${response.status}.`
}
