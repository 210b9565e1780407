// Names of earlier versions still work.

import { expect, test } from "vitest"
import {
  type Current,
  EMPTY_VIEW,
  NOTHING_KNOWN,
  type OutcomeOptions,
  type Output,
  type Question,
  type RunStatus,
  type TaskOutput,
} from "../src/index.js"
import { createTestClient, waitForState } from "./support/test_client.js"
import { respondWithStatus, serve } from "./support/test_server.js"

test("deprecated names are aliases", () => {
  const question: Question = { until: "run" } satisfies OutcomeOptions
  const current: Current = { state: "live", view: NOTHING_KNOWN, error: null } satisfies RunStatus
  const output: Output | undefined = current.view.output.answer satisfies TaskOutput | undefined
  expect(NOTHING_KNOWN).toBe(EMPTY_VIEW)
  expect([question.until, output]).toEqual(["run", undefined])
})

test.each(["giveUpAfterMs", "patienceMs"])("`%s` limits the time of attempts", async (option) => {
  const server = await serve(respondWithStatus(503, { "Retry-After": "2" }))
  const { client, clock } = createTestClient({ baseUrl: server.url, [option]: 1_000 })
  const stream = client.watch("chat", "r1")
  while (stream.state !== "failed") {
    clock.advance(2_000)
    await new Promise((resolve) => setImmediate(resolve))
  }
  expect(await waitForState(stream, "failed")).toMatchObject({ error: { code: "lost", status: 503 } })
  expect(server.requests.length).toBe(2)
  await server.close()
})
