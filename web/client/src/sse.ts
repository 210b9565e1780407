// Server-sent events over fetch, since an EventSource can neither send headers nor tell why it was refused.

import { createParser } from "eventsource-parser"
import type { Ending } from "./endings.js"
import type { Frame } from "./frames.js"
import { refusal, type Server, send, streamAddress } from "./http.js"
import type { Hear, Open } from "./link.js"

const MEDIA_TYPE = "text/event-stream"

/** Returns how to open the stream of a path. */
export function overSse(server: Server, path: string, query: URLSearchParams): Open {
  return async ({ cursor, refresh, signal }, hear) => {
    let response: Response
    try {
      // The cursor goes there: the header Last-Event-ID would cost other origins a preflight for each connection.
      const address = await streamAddress(server, path, query, cursor)
      response = await send(server, address, { headers: { Accept: MEDIA_TYPE }, signal }, refresh)
    } catch (error) {
      return { kind: "cut", why: `No connection: ${error}` }
    }
    return readEvents(response, hear)
  }
}

/** Reads an answer that should be a stream, to its end. */
export async function readEvents(response: Response, hear: Hear): Promise<Ending> {
  if (response.status === 204) return { kind: "over" }
  if (!response.ok) return refusal(response)
  const mediaType = response.headers.get("Content-Type")
  if (!mediaType?.startsWith(MEDIA_TYPE) || response.body === null) {
    await response.body?.cancel().catch(() => {})
    return { kind: "strange", status: response.status, why: `Not an event stream, but ${mediaType ?? "nothing"}` }
  }
  try {
    await readFrames(response.body, hear)
  } catch (error) {
    return { kind: "cut", why: `The connection broke: ${error}` }
  }
  return { kind: "cut", why: "The connection ended before the stream did" }
}

async function readFrames(body: ReadableStream<Uint8Array>, hear: Hear): Promise<void> {
  let frames: Frame[] = []
  const parser = createParser({
    onEvent: ({ data, id }) => {
      const frame = JSON.parse(data) as Frame
      frames.push(id === undefined ? frame : Object.assign(frame, { cursor: id }))
    },
  })
  const decoder = new TextDecoder()
  const reader = body.getReader()
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    parser.feed(decoder.decode(value, { stream: true }))
    if (frames.length > 0) hear(frames)
    frames = []
  }
}
