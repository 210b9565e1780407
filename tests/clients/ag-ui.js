// `HttpAgent` of @ag-ui/client, which verifies the order of events: runs an agent, a line for each event.
// A mode is `run`, `abort` after the first text, or `answer`, which answers each interrupt with a payload.
import { HttpAgent } from "@ag-ui/client";

const [, , url, apiKey, threadId, mode, payload = "null"] = process.argv;
const print = (value) => console.log(JSON.stringify(value));

const agent = new HttpAgent({
  url,
  threadId,
  headers: { Authorization: `Bearer ${apiKey}` },
  initialState: { page: "kept" },
  initialMessages: [
    { id: "1", role: "user", content: "Hello" },
    { id: "2", role: "assistant", content: "Yes?" },
    { id: "3", role: "user", content: [{ type: "text", text: "Why?" }] },
  ],
});
agent.subscribe({
  onEvent: ({ event }) => {
    print({ type: "event", event });
    if (mode === "abort" && event.type === "TEXT_MESSAGE_CONTENT") agent.abortRun();
  },
});
console.error = () => {};

try {
  let { result } = await agent.runAgent({ runId: "first" });
  for (let next = 1; mode === "answer" && agent.pendingInterrupts.length > 0; next++) {
    const resume = agent.pendingInterrupts.map(({ id }) => ({
      interruptId: id,
      ...(payload === "cancelled" ? { status: payload } : { status: "resolved", payload: JSON.parse(payload) }),
    }));
    ({ result } = await agent.runAgent({ runId: `next-${next}`, resume }));
  }
  print({ type: "result", result: result ?? null });
} catch (error) {
  print({ type: "error", message: error.message });
}
print({ type: "closed", messages: agent.messages, state: agent.state, interrupts: agent.pendingInterrupts });
