// What a run's tasks come to, for those who look. Pure.

import type { RunView, TaskInfo } from "airflow-stream-client"
import type { Structure, TaskNode } from "../server.js"

/** A task of the run, all its instances together. */
export interface TaskRow {
  readonly taskId: string
  readonly isResult: boolean
  readonly isTeardown: boolean
  /** The state that says most about its instances. */
  readonly state: string | null
  /** How many instances are in which state; more than one only where the task is mapped. */
  readonly counts: Readonly<Record<string, number>>
  readonly instances: readonly TaskInfo[]
}

export const NO_STATUS = "no_status"

/** The first of these that an instance has is the state of all together. */
const SAYS_MOST = [
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

/** Return the tasks of a run in their order; those that its DAG does not have any more come last. */
export function rowsOf(view: RunView, structure: Structure | null): readonly TaskRow[] {
  const instances = new Map<string, TaskInfo[]>()
  for (const task of Object.values(view.tasks)) {
    instances.set(task.task_id, [...(instances.get(task.task_id) ?? []), task])
  }
  const nodes = new Map(structure?.nodes.map((node) => [node.task_id, node]))
  const others = [...instances.keys(), ...Object.keys(view.counts)].filter((taskId) => !nodes.has(taskId))
  return [...nodes.keys(), ...new Set(others)].map((taskId) =>
    rowOf(taskId, view, instances.get(taskId) ?? [], nodes.get(taskId)),
  )
}

function rowOf(taskId: string, view: RunView, instances: readonly TaskInfo[], node: TaskNode | undefined): TaskRow {
  const counts = Object.hasOwn(view.counts, taskId) ? view.counts[taskId] : undefined
  const counted = counts ?? count(instances)
  const present = SAYS_MOST.find((state) => (counted[state] ?? 0) > 0) ?? Object.keys(counted)[0] ?? NO_STATUS
  return {
    taskId,
    isResult: view.resultTasks.includes(taskId),
    isTeardown: node?.is_teardown ?? false,
    state: present === NO_STATUS ? null : present,
    counts: counted,
    instances,
  }
}

function count(instances: readonly TaskInfo[]): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const { state } of instances) counts[state ?? NO_STATUS] = (counts[state ?? NO_STATUS] ?? 0) + 1
  return counts
}
