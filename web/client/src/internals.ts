// Parts for packages of this repository that build on this one. They may change in any version.

import { detectPlatform } from "./platform.js"
import type { ServerAccess } from "./transport/http.js"
import type { ClientOptions } from "./types.js"

export { computeBackoff } from "./stream/backoff.js"
export { decideNextStep, type NextStep } from "./stream/reconnect_decision.js"
export { buildUrl, canRenewCredential, readRefusal, type ServerAccess, sendRequest } from "./transport/http.js"
export { readEventStream } from "./transport/sse.js"
export { type ConnectionEnd, lost } from "./transport/transport.js"

/** How a package reaches the server. */
export type AccessOptions = Pick<ClientOptions, "baseUrl" | "auth" | "platform">

export function createServerAccess(options: AccessOptions): ServerAccess {
  const baseUrl = (options.baseUrl ?? "").replace(/\/+$/, "")
  return { baseUrl, auth: options.auth ?? "cookie", platform: { ...detectPlatform(), ...options.platform } }
}
