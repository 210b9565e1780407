// Falls back to another transport where the preferred one does not work.

import { type Connector, lost } from "./transport.js"

/**
 * Return a connector that uses `second` where `first` does not work: behind a proxy that does not support WebSockets
 * or swallows their messages, or when a handshake is refused, whose status browsers hide.
 *
 * `first` has failed if it was lost before any frame arrived. Then `second` is used, until it has received a frame:
 * that proves that the server works, so that the next connection tries `first` again.
 */
export function withFallback(first: Connector, second: Connector): Connector {
  let hasFirstFailed = false
  return async (options, onFrames) => {
    if (!hasFirstFailed) {
      let hasReceived = false
      const end = await first(options, (frames) => {
        hasReceived = true
        onFrames(frames)
      }).catch((error) => lost(String(error)))
      if (hasReceived || end.kind !== "lost") return end
      hasFirstFailed = true
      // The caller closed the stream, or gave up a silent connection: then the next attempt uses `second`.
      if (options.signal.aborted) return end
    }
    return second(options, (frames) => {
      hasFirstFailed = false
      onFrames(frames)
    })
  }
}
