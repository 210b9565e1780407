/** Where in the pages the visitor is; the address says so. */
export type Place = { page: "runs" } | { page: "chat" } | { page: "run"; dagId: string; runId: string }

/** Return the place that a path of the server stands for. */
export function placeOf(path: string): Place {
  const run = /^\/runs\/([^/]+)\/([^/]+)$/.exec(path)
  if (run?.[1] !== undefined && run[2] !== undefined) {
    return { page: "run", dagId: decodeURIComponent(run[1]), runId: decodeURIComponent(run[2]) }
  }
  return path === "/chat" ? { page: "chat" } : { page: "runs" }
}

/** Return the path of a run's page. */
export function runPath(dagId: string, runId: string): string {
  return `/runs/${encodeURIComponent(dagId)}/${encodeURIComponent(runId)}`
}
