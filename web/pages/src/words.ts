// What frames mean, in words for people.

import type { Failure } from "airflow-stream-client"

/** Return why the answer will not come. */
export function reasonOf(failure: Failure): string {
  const task =
    failure.task_id === null || failure.task_id === undefined
      ? "A task"
      : pathOfTask(failure.task_id, failure.map_index ?? -1)
  const tries = (failure.try_number ?? 0) > 1 ? ` at try ${failure.try_number}` : ""
  const words = Object.hasOwn(REASONS, failure.reason) ? REASONS[failure.reason] : undefined
  return (words ?? `The answer will not come: ${failure.reason.replaceAll("_", " ")}.`)
    .replace("TASK", `${task}`)
    .replace(" TRIES", tries)
}

const REASONS: Record<string, string> = {
  task_failed: "TASK has failed TRIES, and without it there is no answer.",
  task_skipped: "TASK was skipped, and without it there is no answer.",
  task_removed: "TASK is in the DAG no more, and without it there is no answer.",
  task_upstream_failed: "TASK could not be run, and without it there is no answer.",
  run_failed: "The run has failed, and no task says why: it took too long, or somebody stopped it.",
  run_deleted: "The run was deleted.",
}

/** Return how a task is named in a sentence. */
export function pathOfTask(taskId: string, mapIndex = -1): string {
  return mapIndex < 0 ? `Task “${taskId}”` : `Task “${taskId}” [${mapIndex}]`
}
