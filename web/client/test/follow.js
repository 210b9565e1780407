// Follows a run with the built client, for the Python tests. Prints a JSON line per frame, with the bookmark after it.
//
//   node follow.js '{"client": {"baseUrl": …}, "dagId": …, "runId": …, "options": {…}}'
//
// Without a `runId` it triggers a run with `conf`. `tokens` are used one after the other; `ticketsOf` is a token that is
// exchanged for tickets.
import { createClient } from "../dist/index.js"

const { client: clientOptions, dagId, runId, conf, options = {}, tokens, ticketsOf } = JSON.parse(process.argv[2])
const client = createClient({ ...clientOptions, ...credentialOptions() })
const stream = runId === undefined ? client.run(dagId, conf, options) : client.watch(dagId, runId, options)
const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`)

stream.subscribe(({ state }, frames) => {
  for (const frame of frames) print({ frame, bookmark: stream.bookmark })
  print({ state })
})
const failed = ({ code, status, message }) => ({ error: { code, status, message } })
const outcome = await stream.result.catch(failed)
try {
  for await (const _ of stream) {
    // Until the end of the stream.
  }
} catch {
  // `outcome` has the error.
}
print({ outcome, run: await stream.started.catch(() => null), view: stream.view })
client.close()

function credentialOptions() {
  if (ticketsOf !== undefined) return { auth: { ticket: requestTicket } }
  if (tokens === undefined) return {}
  const bearer = (refresh) => {
    if (refresh && tokens.length > 1) tokens.shift()
    return tokens[0]
  }
  return { auth: { bearer } }
}

async function requestTicket(paths) {
  const headers = { Authorization: `Bearer ${ticketsOf}`, "Content-Type": "application/json" }
  const body = JSON.stringify({ paths })
  const response = await fetch(`${clientOptions.baseUrl}/api/v2/stream/tickets`, { method: "POST", headers, body })
  return (await response.json()).ticket
}
