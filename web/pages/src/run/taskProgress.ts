// The progress that tasks report. Pure.

import type { Output, RunView } from "airflow-stream-client"

/** Return the last progress of each task instance that has not ended. */
export function getRunningProgress(view: RunView): [string, NonNullable<Output["progress"]>][] {
  return Object.entries(view.output).flatMap(([key, { progress }]) =>
    progress === null || (view.tasks[key]?.end_date ?? null) !== null ? [] : [[key, progress]],
  )
}
