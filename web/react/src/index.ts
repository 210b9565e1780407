export { Chat, type ChatMessage, type ChatOptions, type ChatTurn } from "./chat.js"
export { type DagRun, type DagRunResult, useDagRun, useDagRunResult } from "./use_dag_run.js"
export { type DagRunChat, useDagRunChat } from "./use_dag_run_chat.js"
