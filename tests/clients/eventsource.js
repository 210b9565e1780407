// npm's `eventsource`, as its README has it. It is told nothing of our protocol but the names of events.
import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const source = new EventSource(url);
// It would let the process end while it waits to connect again.
const awake = setInterval(() => {}, 60_000);
for (const name of names) {
  source.addEventListener(name, (event) => console.log(event.data));
}
source.addEventListener("error", (event) => {
  if (source.readyState === EventSource.CLOSED) {
    console.log(JSON.stringify({ type: "closed", code: event.code }));
    clearInterval(awake);
  }
});
