// Requests for human input in a view. Pure.

import type { Input, InputAnswered, TaskTransition } from "./protocol/frames.js"
import { taskKey } from "./run_details.js"

/** What a task asks in its current try, and the answer. */
export interface InputRequest {
  readonly request: Input
  /** `null` until there is one. */
  readonly answer: InputAnswered | null
  /** Whether it can be answered. */
  readonly isOpen: boolean
}

export type InputRequests = Readonly<Record<string, InputRequest>>

const WAITING_STATES = new Set<string | null>(["running", "deferred", "awaiting_input"])
const GIVEN_UP_STATES = new Set<string | null>([null, "restarting", "up_for_retry"])

/** Return the key of a task instance; a task in a loop has an instance in each iteration. */
function inputKey({ task_id, map_index, iteration }: Input | InputAnswered | TaskTransition): string {
  const key = taskKey(task_id, map_index)
  return typeof iteration === "number" ? `${key} ${iteration}` : key
}

/** Return the requests after a frame; the same object if it changes nothing. */
export function applyToInputs(before: InputRequests, frame: Input | InputAnswered | TaskTransition): InputRequests {
  const key = inputKey(frame)
  const known = Object.hasOwn(before, key) ? before[key] : undefined
  if (frame.type === "input") return { ...before, [key]: { request: frame, answer: null, isOpen: true } }
  if (known === undefined) return before
  const isSameTry = known.request.try_number === frame.try_number
  if (frame.type === "input_answered") {
    return isSameTry && known.request.asked_at === frame.asked_at
      ? { ...before, [key]: { ...known, answer: frame, isOpen: false } }
      : before
  }
  if (!isSameTry || GIVEN_UP_STATES.has(frame.state)) {
    const { [key]: _, ...others } = before
    return others
  }
  // The answer follows the frame of the task that it resumes.
  return known.isOpen && !WAITING_STATES.has(frame.state) ? { ...before, [key]: { ...known, isOpen: false } } : before
}
