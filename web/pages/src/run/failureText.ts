// Texts for failures of runs.

import type { Failure, Outcome, Waiting } from "airflow-stream-client"

/** Return why a run has no result, as a sentence for users. */
export function describeFailure(failure: Failure): string {
  const task =
    failure.task_id === null || failure.task_id === undefined
      ? "A task"
      : describeTask(failure.task_id, failure.map_index ?? -1)
  const iteration = typeof failure.iteration === "number" ? ` in iteration ${failure.iteration}` : ""
  const tries = (failure.try_number ?? 0) > 1 ? ` on try ${failure.try_number}` : ""
  const text = Object.hasOwn(REASON_TEXTS, failure.reason) ? REASON_TEXTS[failure.reason] : undefined
  return (text ?? `There will be no result: ${failure.reason.replaceAll("_", " ")}.`)
    .replace("TASK", `${task}`)
    .replace(" TRIES", iteration + tries)
}

const REASON_TEXTS: Record<string, string> = {
  task_failed: "TASK failed TRIES. There will be no result.",
  task_skipped: "TASK was skipped. There will be no result.",
  task_removed: "TASK was removed from the DAG. There will be no result.",
  task_upstream_failed: "TASK did not run because an upstream task failed. There will be no result.",
  run_failed: "The run failed, but no task did: it timed out, or it was marked as failed.",
  run_deleted: "The run was deleted.",
}

/** Return how to refer to a task in a sentence. */
export function describeTask(taskId: string, mapIndex = -1): string {
  return mapIndex < 0 ? `Task “${taskId}”` : `Task “${taskId}” [${mapIndex}]`
}

/** Return why a run has neither a result nor a failure, as a sentence. */
export function describeMissingOutcome({
  reason,
  taskId,
}: Pick<Outcome & { kind: "none" }, "reason" | "taskId">): string {
  if (reason === "task_skipped") return `Ended without a result: task “${taskId}” was skipped.`
  if (reason === "run_ended") return "Ended without a result: the run ended before its result tasks had a value."
  return "The run has ended. Its DAG has no result task."
}

/** Return why a run does not proceed, as a sentence. */
export function describeWaiting({ reason, active_runs, pool, slots, occupied }: Waiting): string {
  if (reason === "dag_paused") return "The run waits: its DAG is paused."
  if (reason === "active_runs")
    return `The run waits: ${active_runs ?? "other"} runs of its DAG are active, which is the limit.`
  if (reason === "pool" && slots == null) return `The run waits: Airflow has no pool "${pool}".`
  if (reason === "pool") return `The run waits: ${occupied} of the ${slots} slots of pool "${pool}" are occupied.`
  return `The run waits: ${(reason ?? "").replaceAll("_", " ")}.`
}
