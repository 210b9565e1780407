// A TCP proxy that cuts a connection after a number of bytes.

import { type AddressInfo, connect, createServer, type Socket } from "node:net"

export interface CuttingProxy {
  readonly url: string
  /** After how many bytes to the client the next connection is cut. Later ones are not. */
  bytesBeforeCut: number
  close(): Promise<void>
}

export async function startCuttingProxy(target: string): Promise<CuttingProxy> {
  const { port } = new URL(target)
  const sockets = new Set<Socket>()
  const keep = (socket: Socket) => {
    sockets.add(socket)
    socket.on("close", () => sockets.delete(socket)).on("error", () => socket.destroy())
  }
  const tcp = createServer((client) => {
    let left = cut.bytesBeforeCut
    cut.bytesBeforeCut = Number.POSITIVE_INFINITY
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
  const cut: CuttingProxy = {
    url: `http://127.0.0.1:${own}`,
    bytesBeforeCut: Number.POSITIVE_INFINITY,
    close: () =>
      new Promise((resolve) => {
        tcp.close(() => resolve())
        for (const socket of sockets) socket.destroy()
      }),
  }
  return cut
}
