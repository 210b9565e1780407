export { Chat, type ChatMessage, type ChatOptions } from "./chat.js"
export type { ChatTurn } from "./chat_turn.js"
export { type DagRun, type DagRunResult, useDagRun, useDagRunResult } from "./use_dag_run.js"
export { type DagRunChat, useDagRunChat } from "./use_dag_run_chat.js"
