// A stream server on a real socket. Each test defines its responses, correct or broken.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import { type WebSocket, WebSocketServer } from "ws"
import type { Frame } from "../../src/index.js"
import { resumed } from "./frames.js"

export interface ReceivedRequest {
  readonly url: URL
  readonly request: IncomingMessage
  readonly body: string
}

export type Responder = (response: ServerResponse, request: ReceivedRequest) => void

export interface TestServer {
  readonly url: string
  /** Oldest first. */
  readonly requests: ReceivedRequest[]
  close(): Promise<void>
}

/** Serves requests by one responder after the other; the last one serves all further requests. */
export async function serve(...responders: Responder[]): Promise<TestServer> {
  const requests: ReceivedRequest[] = []
  const http = createServer(async (request, response) => {
    let body = ""
    for await (const part of request) body += part
    const one = { url: new URL(request.url ?? "/", "http://test"), request, body }
    requests.push(one)
    responders[Math.min(requests.length, responders.length) - 1]?.(response, one)
  })
  return { ...(await listen(http)), requests }
}

export interface WebSocketTestServer extends TestServer {
  readonly sockets: WebSocket[]
  /** Messages from clients, parsed. */
  readonly messages: Record<string, unknown>[]
}

/** Serves WebSockets; HTTP requests get a status by default. */
export async function serveSockets(
  onMessage: (socket: WebSocket, message: Record<string, unknown>) => void,
  onSocket: (socket: WebSocket, url: URL) => void = () => {},
  respond: Responder = (response) => response.writeHead(503).end(),
): Promise<WebSocketTestServer> {
  const requests: ReceivedRequest[] = []
  const sockets: WebSocket[] = []
  const messages: Record<string, unknown>[] = []
  const http = createServer((request, response) => {
    const one = { url: new URL(request.url ?? "/", "http://test"), request, body: "" }
    requests.push(one)
    respond(response, one)
  })
  const ws = new WebSocketServer({ server: http })
  ws.on("connection", (socket, request) => {
    sockets.push(socket)
    socket.on("message", (text) => {
      const message = JSON.parse(String(text)) as Record<string, unknown>
      messages.push(message)
      onMessage(socket, message)
    })
    onSocket(socket, new URL(request.url ?? "/", "http://test"))
  })
  const running = await listen(http)
  return { ...running, requests, sockets, messages }
}

async function listen(http: Server): Promise<{ url: string; close: () => Promise<void> }> {
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve))
  const { port } = http.address() as AddressInfo
  const close = () =>
    new Promise<void>((resolve) => {
      http.close(() => resolve())
      http.closeAllConnections()
    })
  return { url: `http://127.0.0.1:${port}`, close }
}

/** Returns frames as server-sent events. The cursor of a frame becomes the id of its event. */
export function toEventStream(frames: readonly Frame[], lineEnd = "\n"): string {
  return frames
    .map((frame) => {
      const { cursor, ...data } = frame as Frame & { cursor?: string }
      const id = cursor === undefined ? "" : `id: ${cursor}${lineEnd}`
      return `event: ${frame.type}${lineEnd}${id}data: ${JSON.stringify(data)}${lineEnd}${lineEnd}`
    })
    .join("")
}

/** Starts a stream, sends text, and keeps the connection open. */
export const respondAndStayOpen =
  (text: string): Responder =>
  (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" })
    response.write(text || ": \n\n")
  }

/** Sends text as a stream, and ends the response. */
export const respondWithStream =
  (text: string): Responder =>
  (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" }).end(text)
  }

export const respondWithStatus =
  (code: number, headers: Record<string, string> = {}, body = ""): Responder =>
  (response) => {
    response.writeHead(code, headers).end(body)
  }

/** Returns what the server sends to a client that resumes after a cursor. */
export function framesAfter(frames: readonly Frame[], cursor: string | null): Frame[] {
  if (cursor === null) return [...frames]
  const last = frames.findIndex((frame) => (frame as { cursor?: string }).cursor === cursor)
  return [resumed(cursor), ...frames.slice(last + 1)]
}
