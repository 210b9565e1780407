// What the run page does while many transitions arrive.

import { EMPTY_VIEW, type Frame, type Waiting } from "airflow-stream-client"
import { afterEach, expect, test, vi } from "vitest"
import { Throttle } from "../src/components/throttle.js"
import { describeWaiting } from "../src/run/failureText.js"
import { buildTaskRows } from "../src/run/taskRows.js"
import { addFrames, MAX_FRAMES, type WatchedRun } from "../src/run/useRun.js"

const STATUS = { state: "live", view: EMPTY_VIEW, error: null } as const

afterEach(() => {
  vi.useRealTimers()
})

test("the page keeps the last frames only", () => {
  let run: WatchedRun = { ...STATUS, frames: [], droppedFrames: 0, waiting: null }
  for (let number = 0; number < 1_000; number++) run = addFrames(run, STATUS, [{ type: "ping", number } as Frame])
  expect(run.frames.length).toBe(MAX_FRAMES)
  expect(run.droppedFrames).toBe(1_000 - MAX_FRAMES)
  expect(run.frames.at(-1)).toEqual({ type: "ping", number: 999 })
})

test("many requests render once per interval, and the last one renders", () => {
  vi.useFakeTimers()
  let rendered = 0
  const throttle = new Throttle(() => {
    rendered++
    return 1_000
  })
  for (let number = 0; number < 200; number++) throttle.request()
  expect(rendered).toBe(1)
  vi.advanceTimersByTime(1_000)
  expect(rendered).toBe(2)
  vi.advanceTimersByTime(10_000)
  expect(rendered).toBe(2)
  throttle.request()
  throttle.request()
  throttle.cancel()
  vi.advanceTimersByTime(10_000)
  expect(rendered).toBe(3)
})

test("instances of a task are grouped in linear time", () => {
  const count = 20_000
  const tasks = Object.fromEntries(
    Array.from({ length: count }, (_, map_index) => {
      const info = { task_id: "t", map_index, try_number: 1, state: "success", start_date: null, end_date: null }
      return [`t[${map_index}]`, info]
    }),
  )
  expect(buildTaskRows({ ...EMPTY_VIEW, tasks }, null)[0]?.counts).toEqual({ success: count })
})

test("the reason why a run waits is shown until it does not hold any more", () => {
  const waiting = (reason: string | null) => ({ type: "waiting", dag_id: "d", run_id: "r", reason }) as Frame
  const start: WatchedRun = { ...STATUS, frames: [], droppedFrames: 0, waiting: null }
  const paused = addFrames(start, STATUS, [waiting("dag_paused")])
  expect(describeWaiting(paused.waiting as Waiting)).toBe("The run waits: its DAG is paused.")
  const full = { reason: "pool", pool: "gpu", slots: 2, occupied: 2, needed: 1 } as Waiting
  expect(describeWaiting(full)).toBe('The run waits: 2 of the 2 slots of pool "gpu" are occupied.')
  expect(addFrames(paused, STATUS, []).waiting).toBe(paused.waiting)
  expect(addFrames(paused, STATUS, [waiting(null)]).waiting).toBe(null)
  for (const type of ["task", "run", "snapshot", "resumed"]) {
    expect(addFrames(paused, STATUS, [{ type } as Frame]).waiting).toBe(null)
  }
})
