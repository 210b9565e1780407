// All tests run without the APIs that the oldest browsers lack; this one shows that they are missing, and what replaces them.

import { expect, test } from "vitest"
import { createRandomId } from "../src/index.js"
import { buildStreamUrl, buildUrl, type ServerAccess } from "../src/transport/http.js"

const server = { baseUrl: "https://x.example", auth: "none", platform: {} } as unknown as ServerAccess

test("the APIs are missing", () => {
  expect("randomUUID" in crypto).toBe(false)
  expect("size" in URLSearchParams.prototype).toBe(false)
  expect(globalThis.navigator?.locks).toBeUndefined()
})

test("addresses have their query", async () => {
  expect(buildUrl(server, "/a", new URLSearchParams({ wait_for_completion: "true" }))).toBe(
    "https://x.example/a?wait_for_completion=true",
  )
  expect(buildUrl(server, "/a", new URLSearchParams())).toBe("https://x.example/a")
  const withTicket = { ...server, auth: { ticket: () => "t1" } }
  expect(await buildStreamUrl(withTicket, "/a", new URLSearchParams(), "c1")).toBe(
    "https://x.example/a?cursor=c1&ticket=t1",
  )
})

test("random ids differ", () => {
  expect(new Set(Array.from({ length: 100 }, createRandomId)).size).toBe(100)
  expect(createRandomId()).toMatch(/^[0-9a-f]{32}$/)
})
