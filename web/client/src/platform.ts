// The browser, or Node: all that the client takes from its surroundings.

import type { Platform } from "./types.js"

/** Returns what there is here. */
export function here(): Platform {
  return {
    fetch: (...request) => globalThis.fetch(...request),
    WebSocket: globalThis.WebSocket,
    locks: globalThis.navigator?.locks,
    BroadcastChannel: globalThis.BroadcastChannel,
    clock: {
      // Not performance.now(), which stands still while a machine sleeps.
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

/** Timers of hidden pages are slow, and connections of frozen ones are gone: better to look than to wait. */
function onWake(callback: () => void): () => void {
  if (typeof document === "undefined") return () => {}
  const shown = () => {
    if (document.visibilityState === "visible") callback()
  }
  document.addEventListener("visibilitychange", shown)
  globalThis.addEventListener("pageshow", callback)
  globalThis.addEventListener("online", callback)
  return () => {
    document.removeEventListener("visibilitychange", shown)
    globalThis.removeEventListener("pageshow", callback)
    globalThis.removeEventListener("online", callback)
  }
}
