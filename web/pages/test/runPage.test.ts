import { EMPTY_VIEW, type RunView, type TaskInfo, taskKey } from "airflow-stream-client"
import { expect, test } from "vitest"
import type { Structure, TaskNode } from "../src/api/api.js"
import { buildRunPagePath, parseRoute } from "../src/routes.js"
import { layOutGraph } from "../src/run/graphLayout.js"
import { buildTaskRows } from "../src/run/taskRows.js"

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
  return { ...EMPTY_VIEW, tasks: Object.fromEntries(tasks.map((one) => [taskKey(one.task_id, one.map_index), one])) }
}

const STRUCTURE: Structure = {
  nodes: [node("ask"), node("work.read", "work"), node("work.write", "work")],
  groups: [{ group_id: "work", parent_id: null, is_mapped: false }],
  edges: [
    { source: "ask", target: "work.read" },
    { source: "work.read", target: "work.write" },
  ],
}

test("rows have the order of the DAG, with removed tasks last", () => {
  const rows = buildTaskRows(viewOf(instance("gone", "removed"), instance("ask", "success")), STRUCTURE)
  expect(rows.map((row) => [row.taskId, row.state])).toEqual([
    ["ask", "success"],
    ["work.read", null],
    ["work.write", null],
    ["gone", "removed"],
  ])
})

test("a row has the state with the highest priority", () => {
  const states = ["success", "running", "failed", null]
  const instances = states.map((state, index) => instance("ask", state, index))
  expect(buildTaskRows(viewOf(...instances), STRUCTURE)[0]?.state).toBe("failed")
  expect(buildTaskRows(viewOf(...instances.slice(0, 2)), STRUCTURE)[0]?.state).toBe("running")
})

test("a row of a task with too many instances has counts", () => {
  const row = buildTaskRows({ ...EMPTY_VIEW, counts: { ask: { success: 1200, no_status: 300 } } }, STRUCTURE)[0]
  expect(row?.counts).toEqual({ success: 1200, no_status: 300 })
})

test.each([true, false])("a group contains its tasks, and tasks are in order (down: %s)", (down) => {
  const boxes = layOutGraph(STRUCTURE, down)
  const [ask, read, write, work] = ["ask", "work.read", "work.write", "group:work"].map((id) => boxes.get(id))
  if (!ask || !read || !write || !work) throw new Error("a node has no box")
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

test.each([true, false])("boxes do not overlap, and group titles are free (down: %s)", (down) => {
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
  const boxes = [...layOutGraph(structure, down)]
  const isIn = (id: string, other: string) =>
    other.startsWith("group:") && id.replace("group:", "").startsWith(`${other.slice(6)}.`)
  const overlaps = boxes.flatMap(([id, one]) =>
    boxes
      .filter(([other]) => other !== id && !isIn(id, other) && !isIn(other, id))
      .filter(([, two]) => one.x < two.x + two.width && two.x < one.x + one.width)
      .filter(([, two]) => one.y < two.y + two.height && two.y < one.y + one.height)
      .map(([other]) => [id, other]),
  )
  expect(overlaps).toEqual([])
  for (const [id, one] of boxes) {
    for (const [other, group] of boxes) if (isIn(id, other)) expect(one.y - group.y).toBeGreaterThanOrEqual(26)
  }
})

test("the path of a run is parsed as its route", () => {
  const [dagId, runId] = ["reports.daily", "manual__2026-11-22T14:21:10+00:00"]
  expect(parseRoute(buildRunPagePath(dagId, runId))).toEqual({ page: "run", dagId, runId })
  expect(parseRoute("/chat")).toEqual({ page: "chat" })
  expect(parseRoute("/")).toEqual({ page: "runs" })
})
