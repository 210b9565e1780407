// The npm package `openai`: streams the answer to a question, a line for each piece of text.
import OpenAI from "openai";

const [, , baseURL, apiKey, mode] = process.argv;
const client = new OpenAI({ baseURL, apiKey });
const print = (value) => console.log(JSON.stringify(value));

try {
  const models = await client.models.list();
  print({ type: "models", ids: models.data.map((model) => model.id) });
  const messages = [{ role: "user", content: "Why?" }];
  if (mode === "whole") {
    const completion = await client.chat.completions.create({ model: "chat", messages });
    print({ type: "text", text: completion.choices[0].message.content });
  } else {
    const stream = await client.chat.completions.create({ model: "chat", messages, stream: true });
    for await (const chunk of stream) {
      const text = chunk.choices[0]?.delta.content;
      if (!text) continue;
      print({ type: "text", text });
      if (mode === "abort") stream.controller.abort();
    }
  }
} catch (error) {
  print({ type: "error", name: error.constructor.name, code: error.code, status: error.status });
}
print({ type: "closed" });
