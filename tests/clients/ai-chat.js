// The npm package `ai` in a major version: sends a question or resumes a chat, a line for each version of the message.
const [, , major, api, apiKey, chatId, mode, question = "Why?"] = process.argv;
const { DefaultChatTransport, readUIMessageStream } = await import(`ai${major}`);

const print = (value) => console.log(JSON.stringify(value));
const transport = new DefaultChatTransport({ api, headers: { Authorization: `Bearer ${apiKey}` } });
const messages = [
  { id: "1", role: "user", parts: [{ type: "text", text: "Hello" }] },
  { id: "2", role: "assistant", parts: [{ type: "step-start" }, { type: "text", text: "Yes?" }] },
  { id: "3", role: "user", parts: [{ type: "text", text: question }] },
];
const abort = new AbortController();

try {
  const stream =
    mode === "resume"
      ? await transport.reconnectToStream({ chatId })
      : await transport.sendMessages({
          chatId,
          messages,
          trigger: "submit-message",
          messageId: undefined,
          abortSignal: abort.signal,
        });
  if (stream === null) {
    print({ type: "nothing" });
  } else {
    for await (const message of readUIMessageStream({ stream, terminateOnError: true })) {
      print({ type: "message", message });
      if (mode === "abort" && message.parts.some((part) => part.type === "text")) abort.abort();
    }
  }
} catch (error) {
  print({ type: "error", name: error.name, message: error.message });
}
print({ type: "closed" });
