// A server of streams on a real socket, which does what a test says: well, or badly.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from "node:net"
import { type WebSocket, WebSocketServer } from "ws"
import type { Frame } from "../../src/index.js"
import { resumed } from "./frames.js"

export interface Asked {
  readonly url: URL
  readonly request: IncomingMessage
  readonly body: string
}

export type Answer = (response: ServerResponse, asked: Asked) => void

export interface TestServer {
  readonly url: string
  /** What was asked, oldest first. */
  readonly asked: Asked[]
  close(): Promise<void>
}

/** Answers requests with one answer after the other; the last one answers all that come after. */
export async function serve(...answers: Answer[]): Promise<TestServer> {
  const asked: Asked[] = []
  const http = createServer(async (request, response) => {
    let body = ""
    for await (const part of request) body += part
    const one = { url: new URL(request.url ?? "/", "http://test"), request, body }
    asked.push(one)
    answers[Math.min(asked.length, answers.length) - 1]?.(response, one)
  })
  return { ...(await listening(http)), asked }
}

export interface Socketed extends TestServer {
  readonly sockets: WebSocket[]
  /** What clients have said, as JSON. */
  readonly said: Record<string, unknown>[]
}

/** Serves WebSockets, and nothing over HTTP but a status. */
export async function serveSockets(
  onMessage: (socket: WebSocket, message: Record<string, unknown>) => void,
  onSocket: (socket: WebSocket, url: URL) => void = () => {},
  answer: Answer = (response) => response.writeHead(503).end(),
): Promise<Socketed> {
  const asked: Asked[] = []
  const sockets: WebSocket[] = []
  const said: Record<string, unknown>[] = []
  const http = createServer((request, response) => {
    const one = { url: new URL(request.url ?? "/", "http://test"), request, body: "" }
    asked.push(one)
    answer(response, one)
  })
  const ws = new WebSocketServer({ server: http })
  ws.on("connection", (socket, request) => {
    sockets.push(socket)
    socket.on("message", (text) => {
      const message = JSON.parse(String(text)) as Record<string, unknown>
      said.push(message)
      onMessage(socket, message)
    })
    onSocket(socket, new URL(request.url ?? "/", "http://test"))
  })
  const running = await listening(http)
  return { ...running, asked, sockets, said }
}

async function listening(http: Server): Promise<{ url: string; close: () => Promise<void> }> {
  await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve))
  const { port } = http.address() as AddressInfo
  const close = () =>
    new Promise<void>((resolve) => {
      http.close(() => resolve())
      http.closeAllConnections()
    })
  return { url: `http://127.0.0.1:${port}`, close }
}

/** Frames as server-sent events; a frame's cursor becomes the event's id. */
export function events(frames: readonly Frame[], lineEnd = "\n"): string {
  return frames
    .map((frame) => {
      const { cursor, ...told } = frame as Frame & { cursor?: string }
      const id = cursor === undefined ? "" : `id: ${cursor}${lineEnd}`
      return `event: ${frame.type}${lineEnd}${id}data: ${JSON.stringify(told)}${lineEnd}${lineEnd}`
    })
    .join("")
}

/** Begins a stream, sends text, and leaves it open. */
export const open =
  (text: string): Answer =>
  (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" })
    response.write(text || ": \n\n")
  }

/** Sends text as a stream, and ends the body. */
export const whole =
  (text: string): Answer =>
  (response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" }).end(text)
  }

export const status =
  (code: number, headers: Record<string, string> = {}, body = ""): Answer =>
  (response) => {
    response.writeHead(code, headers).end(body)
  }

/** A stream as a server tells it: after a cursor comes what was not told before it. */
export function after(frames: readonly Frame[], cursor: string | null): Frame[] {
  if (cursor === null) return [...frames]
  const told = frames.findIndex((frame) => (frame as { cursor?: string }).cursor === cursor)
  return [resumed(cursor), ...frames.slice(told + 1)]
}

export interface Cutter {
  readonly url: string
  /** Bytes that the next connection lets through to the client. */
  next: number
  close(): Promise<void>
}

/** A proxy whose next connection breaks after so many bytes; those after it are whole. */
export async function cutter(target: string): Promise<Cutter> {
  const { port } = new URL(target)
  const sockets = new Set<Socket>()
  const keep = (socket: Socket) => {
    sockets.add(socket)
    socket.on("close", () => sockets.delete(socket)).on("error", () => socket.destroy())
  }
  const tcp = createTcpServer((client) => {
    let left = cut.next
    cut.next = Number.POSITIVE_INFINITY
    const server = connect(Number(port), "127.0.0.1")
    keep(client)
    keep(server)
    client.pipe(server)
    client.on("close", () => server.destroy())
    server.on("close", () => client.destroy())
    server.on("data", (data: Buffer) => {
      client.write(data.subarray(0, left))
      left -= data.length
      if (left <= 0) client.destroySoon()
    })
  })
  await new Promise<void>((resolve) => tcp.listen(0, "127.0.0.1", resolve))
  const { port: own } = tcp.address() as AddressInfo
  const cut: Cutter = {
    url: `http://127.0.0.1:${own}`,
    next: Number.POSITIVE_INFINITY,
    close: () =>
      new Promise((resolve) => {
        tcp.close(() => resolve())
        for (const socket of sockets) socket.destroy()
      }),
  }
  return cut
}
