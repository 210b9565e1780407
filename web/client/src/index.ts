export type { AgentPart } from "./agent_parts.js"
export { createClient } from "./client.js"
export { StreamError, type StreamErrorCode } from "./errors.js"
export {
  type Ack,
  type AuthExpiring,
  CLOSE_CODES,
  type Close,
  type Ping,
  type Refusal,
} from "./protocol/connection_frames.js"
export {
  type Chunk,
  type End,
  type Failure,
  FRAME_TYPES,
  type Frame,
  type Input,
  type InputAnswered,
  type InputParam,
  type InputUser,
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
  type Thinking,
  type ToolCall,
  type ToolRequest,
  type ToolResponse,
  type ToolResult,
  type Waiting,
} from "./protocol/frames.js"
export { createRandomId } from "./random_id.js"
export { taskKey } from "./run_details.js"
export type { InputRequest, InputRequests } from "./run_inputs.js"
export {
  chunksOf,
  EMPTY_VIEW,
  NOTHING_KNOWN,
  type Outcome,
  type Output,
  type RunView,
  reduce,
  type TaskOutput,
} from "./run_view.js"
export type * from "./types.js"
