// One connection for all tabs of a browser.

import { setMaxListeners } from "node:events"
import { expect, test } from "vitest"
import { WebSocket } from "ws"
import { type Client, createRandomId, type RunStream } from "../src/index.js"
import { chunk, end, result, resumed, snapshot, withCursor } from "./support/frames.js"
import { eventually, type TestClient, waitForState, waitUntil } from "./support/test_client.js"
import { FakeBrowser } from "./support/web_locks.js"
import { createSocketClient, serveMultiplexed, subscriptionsOf } from "./support/websockets.js"

// Ten tabs in one process wait for locks, with a listener each.
setMaxListeners(0)

interface Tab extends TestClient {
  readonly kill: () => void
}

/** Opens tabs of one browser that share a connection. */
function openTabs(url: string, count: number): Tab[] {
  const browser = new FakeBrowser()
  const name = createRandomId()
  return Array.from({ length: count }, () => {
    const { locks, kill } = browser.openTab()
    return { ...createSocketClient(url, { shareAs: name }, { locks, BroadcastChannel }), kill }
  })
}

const watchRun = (tab: { client: Client }, runId = "r1") => tab.client.watch("chat", runId)

test("ten tabs share one connection", async () => {
  const server = await serveMultiplexed((runId) => [withCursor("c1", snapshot({ run_id: runId }))])
  const streams = openTabs(server.url, 10).map((tab, index) => watchRun(tab, `r${index}`))
  for (const stream of streams) await waitForState(stream, "live")
  expect(server.sockets.length).toBe(1)
  expect(streams.map(({ view }) => view.runId)).toEqual(Array.from({ length: 10 }, (_, index) => `r${index}`))
})

test("when the leading tab crashes, the others resume on one new connection", async () => {
  const server = await serveMultiplexed((_, cursor) =>
    cursor === undefined
      ? [withCursor("c1", snapshot()), withCursor("c2", chunk(1, 0, "half an "))]
      : [
          resumed(cursor),
          withCursor("c3", chunk(2, 1, "answer")),
          withCursor("c4", result("half an answer")),
          withCursor("c5", end()),
        ],
  )
  const all = openTabs(server.url, 3)
  const streams = all.map((tab) => watchRun(tab))
  for (const stream of streams) await waitUntil(stream, ({ view }) => view.output.answer?.text === "half an ")
  const [leader, ...others] = streams as [RunStream, ...RunStream[]]
  // Like a crash: the connection is lost, and the locks are released.
  server.sockets[0]?.removeAllListeners()
  all[0]?.client.close()
  all[0]?.kill()
  for (const stream of others) await waitForState(stream, "ended")
  expect(others.map(({ view }) => view.output.answer?.text)).toEqual(["half an answer", "half an answer"])
  expect(leader.state).toBe("closed")
  expect(server.sockets.length).toBe(2)
  expect(subscriptionsOf(server).map(({ cursor }) => cursor)).toEqual([undefined, undefined, undefined, "c2", "c2"])
})

test("the leading tab closes the streams of a tab that is gone", async () => {
  const server = await serveMultiplexed(() => [withCursor("c1", snapshot())])
  const [first, second] = openTabs(server.url, 2) as [Tab, Tab]
  await waitForState(watchRun(first), "live")
  await waitForState(watchRun(second, "r2"), "live")
  second.kill()
  await eventually(() => server.messages.some(({ op }) => op === "unsubscribe"))
})

test("a leading tab that is suspended is replaced", async () => {
  const server = await serveMultiplexed(() => [withCursor("c1", snapshot())])
  const browser = new FakeBrowser()
  let isSuspended = false
  class SuspendableChannel extends BroadcastChannel {
    override postMessage(message: unknown): void {
      if (!isSuspended) super.postMessage(message)
    }
  }
  const tab = (Channel: typeof BroadcastChannel) =>
    createSocketClient(
      server.url,
      { shareAs: "suspended" },
      { locks: browser.openTab().locks, BroadcastChannel: Channel },
    )
  const suspended = tab(SuspendableChannel)
  const first = watchRun(suspended)
  await waitForState(first, "live")
  isSuspended = true
  const second = tab(BroadcastChannel)
  const stream = watchRun(second, "r2")
  await eventually(() => second.clock.next === 5_000, "the leader gets a subscription")
  second.clock.advance(5_000)
  isSuspended = false
  await waitForState(stream, "live")
  // The stream of the first tab resumes through the second one.
  await eventually(() => subscriptionsOf(server).length === 3, "it subscribes again")
  await eventually(() => suspended.clock.next === 1_000, "its connection is idle")
  suspended.clock.advance(1_000)
  await eventually(() => server.sockets[0]?.readyState === WebSocket.CLOSED, "its connection is closed")
  await waitUntil(first, (status) => status.error === null && status.state === "live", "it resumes")
})

test("without locks, each tab has its own connection", async () => {
  const server = await serveMultiplexed(() => [withCursor("c1", snapshot())])
  for (let tab = 0; tab < 2; tab++) {
    const { client: one } = createSocketClient(server.url, { shareAs: "me" }, { locks: undefined as never })
    await waitForState(one.watch("chat", "r1"), "live")
  }
  const broken = { request: () => Promise.reject(new DOMException("No", "SecurityError")) } as never
  const { client: one } = createSocketClient(server.url, { shareAs: "me too" }, { locks: broken, BroadcastChannel })
  await waitForState(one.watch("chat", "r1"), "live")
  expect(server.sockets.length).toBe(3)
})

test("a dead connection of the leading tab is replaced for all tabs", async () => {
  const server = await serveMultiplexed((_, cursor) =>
    cursor === undefined ? [withCursor("c1", snapshot())] : [resumed(cursor), withCursor("c2", result()), end()],
  )
  const [leader, follower] = openTabs(server.url, 2) as [Tab, Tab]
  const first = watchRun(leader)
  await waitForState(first, "live")
  const second = watchRun(follower)
  await waitForState(second, "live")
  leader.clock.advance(5_000)
  follower.clock.advance(5_000)
  follower.wake()
  await waitForState(second, "ended")
  await waitForState(first, "ended")
  expect(server.sockets.length).toBe(2)
})
