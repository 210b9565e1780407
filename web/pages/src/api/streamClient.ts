// The client for streams. One for the page; tabs of the same signed-in user share its connection.

import { type Client, createClient } from "airflow-stream-client"
import { getConnectionName } from "../session/signInState.js"
import { URL_PREFIX } from "../urlPrefix.js"

let current: { name: string; client: Client } | null = null

/** Return the client. After a sign-in it is a new one: a connection has the permissions of one user. */
export function getClient(): Client {
  const name = getConnectionName()
  if (current?.name !== name) {
    current?.client.close()
    current = { name, client: createClient({ baseUrl: URL_PREFIX, shareAs: `${name}${URL_PREFIX}` }) }
  }
  return current.client
}
