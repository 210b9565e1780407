export { createClient } from "./client.js"
export { type Ack, type AuthExpiring, CLOSE_CODES, type Close, type Ping, type Refusal } from "./connection.js"
export { StreamError, type StreamErrorCode } from "./errors.js"
export {
  type Chunk,
  type End,
  type Failure,
  FRAME_TYPES,
  type Frame,
  type Progress,
  type Reference,
  type Reset,
  type Result,
  type Resumed,
  type RunInfo,
  type RunTransition,
  type Snapshot,
  type TaskInfo,
  type TaskTransition,
} from "./frames.js"
export type * from "./types.js"
export { chunksOf, NOTHING_KNOWN, type Outcome, type Output, type RunView, reduce, taskKey } from "./view.js"
