import { URL_PREFIX } from "./urlPrefix.js"

/** The page that a URL stands for. */
export type Route = { page: "runs" } | { page: "chat" } | { page: "run"; dagId: string; runId: string }

export function parseRoute(fullPath: string): Route {
  const path = fullPath.startsWith(`${URL_PREFIX}/`) ? fullPath.slice(URL_PREFIX.length) : fullPath
  const run = /^\/runs\/([^/]+)\/([^/]+)$/.exec(path)
  if (run?.[1] !== undefined && run[2] !== undefined) {
    return { page: "run", dagId: decodeURIComponent(run[1]), runId: decodeURIComponent(run[2]) }
  }
  return path === "/chat" ? { page: "chat" } : { page: "runs" }
}

/** Return the path of a run's page. */
export function buildRunPagePath(dagId: string, runId: string): string {
  return `${URL_PREFIX}/runs/${encodeURIComponent(dagId)}/${encodeURIComponent(runId)}`
}
