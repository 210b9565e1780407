// The npm package `eventsource-client`, used as in its README: it iterates over events of any name.
import { createEventSource } from "eventsource-client";

const source = createEventSource({ url: process.argv[2] });
for await (const { data } of source) {
  console.log(data);
}
console.log(JSON.stringify({ type: "closed" }));
