// Follows a run with the built client, for the tests of the Python side: a line for each frame, with where the stream stands.
//
//   node follow.js '{"client": {"baseUrl": …}, "dagId": …, "runId": …, "options": {…}}'
//
// Without a runId it triggers one, with `conf`. `tokens` are used one after the other; `ticketsOf` is a token that tickets are
// bought with.
import { createClient } from "../dist/index.js"

const { client: clientOptions, dagId, runId, conf, options = {}, tokens, ticketsOf } = JSON.parse(process.argv[2])
const client = createClient({ ...clientOptions, ...credential() })
const stream = runId === undefined ? client.run(dagId, conf, options) : client.watch(dagId, runId, options)
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`)

stream.subscribe(({ state }, frames) => {
  for (const frame of frames) say({ frame, bookmark: stream.bookmark })
  say({ state })
})
const failed = ({ code, status, message }) => ({ error: { code, status, message } })
const outcome = await stream.result.catch(failed)
try {
  for await (const _ of stream) {
    // To its end.
  }
} catch {
  // The outcome says why.
}
say({ outcome, run: await stream.started.catch(() => null), view: stream.view })
client.close()

function credential() {
  if (ticketsOf !== undefined) return { auth: { ticket: buy } }
  if (tokens === undefined) return {}
  const bearer = (refresh) => {
    if (refresh && tokens.length > 1) tokens.shift()
    return tokens[0]
  }
  return { auth: { bearer } }
}

async function buy(paths) {
  const headers = { Authorization: `Bearer ${ticketsOf}`, "Content-Type": "application/json" }
  const body = JSON.stringify({ paths })
  const answer = await fetch(`${clientOptions.baseUrl}/api/v2/stream/tickets`, { method: "POST", headers, body })
  return (await answer.json()).ticket
}
