// What tabs send each other over a BroadcastChannel. `to` and `from` are ids of tabs.
//
// Tabs of one browser may run different versions. A change of these messages needs another `VERSION`, which keeps
// the versions apart: each has a channel, a leader and a connection of its own.

import type { Frame } from "../protocol/frames.js"
import type { StreamRequest } from "../transport/stream_request.js"
import type { ConnectionEnd } from "../transport/transport.js"

const VERSION = 2

export type TabMessage =
  /** From a tab that has become the leader. */
  | { readonly kind: "leader" }
  | {
      readonly kind: "subscribe"
      readonly from: string
      readonly id: string
      readonly request: StreamRequest
      readonly cursor: string | null
      readonly refresh: boolean
    }
  | {
      readonly kind: "unsubscribe"
      readonly from: string
      readonly id: string
      /** Whether the connection seems to be dead. Absent from older versions. */
      readonly isDead?: boolean
    }
  /** From the leader. Without frames: the subscription was received. */
  | { readonly kind: "frames"; readonly to: string; readonly id: string; readonly frames: readonly Frame[] }
  /** From the leader: the connection of a stream has ended. */
  | { readonly kind: "end"; readonly to: string; readonly id: string; readonly end: ConnectionEnd }

/** Return the name of the channel, which is also the name of the leader's lock. */
export function channelName(shareAs: string): string {
  return `airflow-stream:${VERSION}:${shareAs}:`
}
