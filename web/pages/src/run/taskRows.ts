// Summarises the task instances of a run by task. Pure.

import type { RunView, TaskInfo } from "airflow-stream-client"
import type { Structure, TaskNode } from "../api/api.js"

/** A task of the run with all its instances. */
export interface TaskRow {
  readonly taskId: string
  readonly isResult: boolean
  readonly isTeardown: boolean
  /** The state with the highest priority among its instances. */
  readonly state: string | null
  /** Number of instances by state; more than one instance only if the task is mapped. */
  readonly counts: Readonly<Record<string, number>>
  readonly instances: readonly TaskInfo[]
  /** Its instances in earlier iterations of the loop around it, oldest first. */
  readonly earlier: readonly TaskInfo[]
  /** The newest iteration of the loop around it, from 0; `null` outside of loops. */
  readonly iteration: number | null
}

export const NO_STATUS = "no_status"

/** Highest priority first. */
const STATE_PRIORITY = [
  "failed",
  "upstream_failed",
  "running",
  "awaiting_input",
  "restarting",
  "up_for_retry",
  "up_for_reschedule",
  "deferred",
  "queued",
  "scheduled",
  NO_STATUS,
  "removed",
  "skipped",
  "success",
]

/** Return the tasks in the order of the DAG; tasks that were removed from it come last. */
export function buildTaskRows(view: RunView, structure: Structure | null): readonly TaskRow[] {
  const instances = new Map<string, TaskInfo[]>()
  for (const task of Object.values(view.tasks)) {
    const others = instances.get(task.task_id)
    if (others === undefined) instances.set(task.task_id, [task])
    else others.push(task)
  }
  const nodes = new Map(structure?.nodes.map((node) => [node.task_id, node]))
  const others = [...instances.keys(), ...Object.keys(view.counts)].filter((taskId) => !nodes.has(taskId))
  return [...nodes.keys(), ...new Set(others)].map((taskId) =>
    buildTaskRow(taskId, view, instances.get(taskId) ?? [], nodes.get(taskId)),
  )
}

function buildTaskRow(
  taskId: string,
  view: RunView,
  instances: readonly TaskInfo[],
  node: TaskNode | undefined,
): TaskRow {
  const counts = Object.hasOwn(view.counts, taskId) ? view.counts[taskId] : undefined
  const counted = counts ?? countByState(instances)
  const present = STATE_PRIORITY.find((state) => (counted[state] ?? 0) > 0) ?? Object.keys(counted)[0] ?? NO_STATUS
  return {
    taskId,
    isResult: view.resultTasks.includes(taskId),
    isTeardown: node?.is_teardown ?? false,
    state: present === NO_STATUS ? null : present,
    counts: counted,
    instances,
    earlier: Object.hasOwn(view.earlierIterations ?? {}, taskId) ? (view.earlierIterations?.[taskId] ?? []) : [],
    iteration: instances[0]?.iteration ?? null,
  }
}

function countByState(instances: readonly TaskInfo[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const { state } of instances) counts[state ?? NO_STATUS] = (counts[state ?? NO_STATUS] ?? 0) + 1
  return counts
}
