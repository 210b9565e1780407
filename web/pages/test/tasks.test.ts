import { NOTHING_KNOWN, type RunView, type TaskInfo, taskKey } from "airflow-stream-client"
import { expect, test } from "vitest"
import { placeOf, runPath } from "../src/place.js"
import { placesOf } from "../src/run/layout.js"
import { rowsOf } from "../src/run/tasks.js"
import type { Structure, TaskNode } from "../src/server.js"

function node(task_id: string, group_id: string | null = null): TaskNode {
  return {
    task_id,
    group_id,
    operator: "@task",
    is_mapped: false,
    is_setup: false,
    is_teardown: false,
    is_result: false,
  }
}

function instance(task_id: string, state: string | null, map_index = -1): TaskInfo {
  return { task_id, map_index, try_number: 1, state, start_date: null, end_date: null }
}

function viewOf(...tasks: TaskInfo[]): RunView {
  return { ...NOTHING_KNOWN, tasks: Object.fromEntries(tasks.map((one) => [taskKey(one.task_id, one.map_index), one])) }
}

const STRUCTURE: Structure = {
  nodes: [node("ask"), node("work.read", "work"), node("work.write", "work")],
  groups: [{ group_id: "work", parent_id: null, is_mapped: false }],
  edges: [
    { source: "ask", target: "work.read" },
    { source: "work.read", target: "work.write" },
  ],
}

test("tasks come in the order of the DAG, those that it has no more last", () => {
  const rows = rowsOf(viewOf(instance("gone", "removed"), instance("ask", "success")), STRUCTURE)
  expect(rows.map((row) => [row.taskId, row.state])).toEqual([
    ["ask", "success"],
    ["work.read", null],
    ["work.write", null],
    ["gone", "removed"],
  ])
})

test("what says most of many instances stands for all", () => {
  const states = ["success", "running", "failed", null]
  const instances = states.map((state, index) => instance("ask", state, index))
  expect(rowsOf(viewOf(...instances), STRUCTURE)[0]?.state).toBe("failed")
  expect(rowsOf(viewOf(...instances.slice(0, 2)), STRUCTURE)[0]?.state).toBe("running")
})

test("counts stand for instances that are too many to be told", () => {
  const row = rowsOf({ ...NOTHING_KNOWN, counts: { ask: { success: 1200, no_status: 300 } } }, STRUCTURE)[0]
  expect(row?.counts).toEqual({ success: 1200, no_status: 300 })
})

test.each([true, false])("a group is around its tasks, and tasks follow each other (down: %s)", (down) => {
  const places = placesOf(STRUCTURE, down)
  const [ask, read, write, work] = ["ask", "work.read", "work.write", "group:work"].map((id) => places.get(id))
  if (!ask || !read || !write || !work) throw new Error("something has no place")
  const along = down ? "y" : "x"
  expect(ask[along]).toBeLessThan(read[along])
  expect(read[along]).toBeLessThan(write[along])
  for (const task of [read, write]) {
    expect(task.x).toBeGreaterThan(work.x)
    expect(task.y).toBeGreaterThan(work.y)
    expect(task.x + task.width).toBeLessThan(work.x + work.width)
    expect(task.y + task.height).toBeLessThan(work.y + work.height)
  }
})

test.each([true, false])("nothing lies on anything else, and titles of groups are free (down: %s)", (down) => {
  const group = (group_id: string, parent_id: string | null) => ({ group_id, parent_id, is_mapped: false })
  const structure: Structure = {
    nodes: [
      ...["log", "ask", "end"].map((id) => node(id)),
      ...["a.one", "a.two", "a.three"].map((id) => node(id, "a")),
      ...["b.one", "b.two"].map((id) => node(id, "b")),
      ...["b.in.one", "b.in.two"].map((id) => node(id, "b.in")),
      node("c.one", "c"),
    ],
    groups: [group("a", null), group("b", null), group("b.in", "b"), group("c", null)],
    edges: [
      { source: "ask", target: "b.one" },
      { source: "b.one", target: "b.in.one" },
      { source: "b.in.one", target: "end" },
      { source: "a.one", target: "a.two" },
    ],
  }
  const places = [...placesOf(structure, down)]
  const isIn = (id: string, other: string) =>
    other.startsWith("group:") && id.replace("group:", "").startsWith(`${other.slice(6)}.`)
  const overlaps = places.flatMap(([id, one]) =>
    places
      .filter(([other]) => other !== id && !isIn(id, other) && !isIn(other, id))
      .filter(([, two]) => one.x < two.x + two.width && two.x < one.x + one.width)
      .filter(([, two]) => one.y < two.y + two.height && two.y < one.y + one.height)
      .map(([other]) => [id, other]),
  )
  expect(overlaps).toEqual([])
  for (const [id, one] of places) {
    for (const [other, around] of places) if (isIn(id, other)) expect(one.y - around.y).toBeGreaterThanOrEqual(26)
  }
})

test("the address of a run leads to it, whatever its name", () => {
  const [dagId, runId] = ["reports.daily", "manual__2026-11-22T14:21:10+00:00"]
  expect(placeOf(runPath(dagId, runId))).toEqual({ page: "run", dagId, runId })
  expect(placeOf("/chat")).toEqual({ page: "chat" })
  expect(placeOf("/")).toEqual({ page: "runs" })
})
