// Server-sent events over fetch: an EventSource can neither send headers nor report the status of a refusal.

import { createParser } from "eventsource-parser"
import type { Frame } from "../protocol/frames.js"
import { buildStreamUrl, readRefusal, type ServerAccess, sendRequest } from "./http.js"
import { buildQuery, buildStreamPath, type StreamRequest } from "./stream_request.js"
import { type ConnectionEnd, type Connector, lost, type OnFrames } from "./transport.js"

const MEDIA_TYPE = "text/event-stream"

export function createSseConnector(server: ServerAccess, request: StreamRequest): Connector {
  return async ({ cursor, refresh, signal }, onFrames) => {
    let response: Response
    try {
      // The cursor is a query parameter: the header Last-Event-ID would need a CORS preflight for each connection.
      const url = await buildStreamUrl(server, buildStreamPath(request), buildQuery(request), cursor)
      response = await sendRequest(server, url, { headers: { Accept: MEDIA_TYPE }, signal }, refresh)
    } catch (error) {
      return lost(`No connection: ${error}`)
    }
    return readEventStream(response, onFrames)
  }
}

/** Read a response to its end, if it is an event stream. */
export async function readEventStream(response: Response, onFrames: OnFrames): Promise<ConnectionEnd> {
  if (response.status === 204) return { kind: "complete" }
  if (!response.ok) return readRefusal(response)
  const mediaType = response.headers.get("Content-Type")
  if (!mediaType?.startsWith(MEDIA_TYPE) || response.body === null) {
    await response.body?.cancel().catch(() => {})
    const reason = `Not an event stream, but ${mediaType ?? "nothing"}`
    return { kind: "not_a_stream", status: response.status, reason }
  }
  try {
    await readFrames(response.body, onFrames)
  } catch (error) {
    return lost(`The connection broke: ${error}`)
  }
  return lost("The connection ended before the stream did")
}

async function readFrames(body: ReadableStream<Uint8Array>, onFrames: OnFrames): Promise<void> {
  let frames: Frame[] = []
  const parser = createParser({
    onEvent: ({ data, id }) => {
      const frame = JSON.parse(data) as Frame
      frames.push(id === undefined ? frame : Object.assign(frame, { cursor: id }))
    },
  })
  // `stream: true` keeps the first bytes of a character that is split between two reads. Without it, both halves
  // would become U+FFFD. The decoder also removes a BOM; the parser handles CR and LF split between two reads.
  const decoder = new TextDecoder()
  const reader = body.getReader()
  for (;;) {
    const { done, value } = await reader.read()
    // An event without its empty line at the end is incomplete and dropped. Its cursor was not recorded, so that it
    // is sent again.
    if (done) return
    parser.feed(decoder.decode(value, { stream: true }))
    if (frames.length > 0) onFrames(frames)
    frames = []
  }
}
