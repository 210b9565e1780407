// How far tasks say that they have come. Pure.

import type { Output, RunView } from "airflow-stream-client"

/** Return how far tasks have come, those that go on: what one said last before it ended is old news. */
export function progressOf(view: RunView): [string, NonNullable<Output["progress"]>][] {
  return Object.entries(view.output).flatMap(([key, { progress }]) =>
    progress === null || (view.tasks[key]?.end_date ?? null) !== null ? [] : [[key, progress]],
  )
}
