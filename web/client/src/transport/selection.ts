// Selects the transport of a client.

import type { ClientOptions } from "../types.js"
import type { ServerAccess } from "./http.js"
import { createSseConnector } from "./sse.js"
import type { StreamRequest } from "./stream_request.js"
import type { Transport } from "./transport.js"

export function selectTransport(server: ServerAccess, { transport = "sse", shareAs }: ClientOptions): Transport {
  const createSse = (request: StreamRequest) => createSseConnector(server, request)
  if (shareAs === undefined && transport === "sse") {
    return { createConnector: createSse, canStreamPost: true, close: () => {} }
  }
  const fallback: Transport = { createConnector: createSse, canStreamPost: false, close: () => {} }
  const loading = import("./websocket_transport.js")
    .then(({ createWebSocketTransport }) => createWebSocketTransport(server, transport, shareAs, createSse))
    // The file may be gone from the server after a new version was deployed.
    .catch(() => fallback)
  return {
    createConnector: (request) => {
      const connector = loading.then((loaded) => loaded.createConnector(request))
      return async (options, onFrames) => (await connector)(options, onFrames)
    },
    canStreamPost: false,
    close: () => void loading.then((loaded) => loaded.close()),
  }
}
