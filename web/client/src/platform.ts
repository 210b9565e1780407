// Everything that the client uses of its environment, a browser or Node.

import type { Platform } from "./types.js"

export function detectPlatform(): Platform {
  return {
    // Wrapped: called as a method of another object, the browser's `fetch` throws "Illegal invocation".
    fetch: (...request) => globalThis.fetch(...request),
    WebSocket: globalThis.WebSocket,
    locks: globalThis.navigator?.locks,
    BroadcastChannel: globalThis.BroadcastChannel,
    clock: {
      // Not performance.now(), which stands still while the machine sleeps.
      now: () => Date.now(),
      after: (ms, callback) => {
        const timer = setTimeout(callback, ms)
        return () => clearTimeout(timer)
      },
    },
    random: () => Math.random(),
    onWake,
  }
}

/** Browsers slow down the timers of hidden pages and drop the connections of frozen ones without an event. */
function onWake(callback: () => void): () => void {
  if (typeof document === "undefined") return () => {}
  const onVisibilityChange = () => {
    if (document.visibilityState === "visible") callback()
  }
  // Without `persisted`, the page was just loaded.
  const onPageShow = ({ persisted }: PageTransitionEvent) => {
    if (persisted) callback()
  }
  document.addEventListener("visibilitychange", onVisibilityChange)
  globalThis.addEventListener("pageshow", onPageShow)
  globalThis.addEventListener("online", callback)
  return () => {
    document.removeEventListener("visibilitychange", onVisibilityChange)
    globalThis.removeEventListener("pageshow", onPageShow)
    globalThis.removeEventListener("online", callback)
  }
}
