// Times as people read them.

import { useEffect, useState } from "react"

const TICK_MS = 500

/** Return the time, which goes on while `running`. */
export function useNow(running: boolean): number {
  const [now, setNow] = useState(Date.now)
  useEffect(() => {
    if (!running) return
    const timer = setInterval(() => setNow(Date.now()), TICK_MS)
    return () => clearInterval(timer)
  }, [running])
  return now
}

/** Return a duration: `0.4 s`, `12.3 s`, `3 min 5 s`, `2 h 4 min`. */
export function duration(ms: number): string {
  const seconds = Math.max(0, ms) / 1000
  if (seconds < 60) return `${seconds.toFixed(1)} s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

/** Return a time of day with milliseconds, where the visitor is. */
export function clock(at: string): string {
  return new Date(at).toLocaleTimeString([], {
    hour12: false,
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    fractionalSecondDigits: 3,
  })
}

/** Return a moment: the time for today's, with its day for others. */
export function moment(at: string | null): string {
  if (at === null) return "—"
  const date = new Date(at)
  const today = date.toDateString() === new Date().toDateString()
  const time = date.toLocaleTimeString([], { hour12: false })
  return today ? time : `${date.toLocaleDateString()} ${time}`
}
