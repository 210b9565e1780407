// The npm package `eventsource`, used as in its README. It knows nothing of our protocol but the names of the events.
import { EventSource } from "eventsource";

const [url, ...names] = process.argv.slice(2);
const source = new EventSource(url);
// Without a timer, the process would end while the source waits before it reconnects.
const keepAlive = setInterval(() => {}, 60_000);
for (const name of names) {
  source.addEventListener(name, (event) => console.log(event.data));
}
source.addEventListener("error", (event) => {
  if (source.readyState === EventSource.CLOSED) {
    console.log(JSON.stringify({ type: "closed", code: event.code }));
    clearInterval(keepAlive);
  }
});
