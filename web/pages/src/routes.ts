/** The page that a URL stands for. */
export type Route = { page: "runs" } | { page: "chat" } | { page: "run"; dagId: string; runId: string }

export function parseRoute(path: string): Route {
  const run = /^\/runs\/([^/]+)\/([^/]+)$/.exec(path)
  if (run?.[1] !== undefined && run[2] !== undefined) {
    return { page: "run", dagId: decodeURIComponent(run[1]), runId: decodeURIComponent(run[2]) }
  }
  return path === "/chat" ? { page: "chat" } : { page: "runs" }
}

/** Return the path of a run's page. */
export function buildRunPagePath(dagId: string, runId: string): string {
  return `/runs/${encodeURIComponent(dagId)}/${encodeURIComponent(runId)}`
}
