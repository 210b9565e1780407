// `eventsource-client`, as its README has it: an iterator over all events, whatever their names.
import { createEventSource } from "eventsource-client";

const source = createEventSource({ url: process.argv[2] });
for await (const { data } of source) {
  console.log(data);
}
console.log(JSON.stringify({ type: "closed" }));
