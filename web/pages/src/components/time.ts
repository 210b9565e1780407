// Formats times and durations.

import { useEffect, useState } from "react"

const TICK_MS = 500

/** Return the time in milliseconds, updated while `running`. */
export function useNow(running: boolean): number {
  const [now, setNow] = useState(Date.now)
  useEffect(() => {
    if (!running) return
    const timer = setInterval(() => setNow(Date.now()), TICK_MS)
    return () => clearInterval(timer)
  }, [running])
  return now
}

/** Format a duration: `0.4 s`, `12.3 s`, `3 min 5 s`, `2 h 4 min`. */
export function formatDuration(ms: number): string {
  const seconds = Math.max(0, ms) / 1000
  if (seconds < 60) return `${seconds.toFixed(1)} s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}

/** Format a time of day with milliseconds, in the local time zone. */
export function formatTimeOfDay(at: string): string {
  return new Date(at).toLocaleTimeString([], {
    hour12: false,
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    fractionalSecondDigits: 3,
  })
}

/** Format a time; with its date unless that is today. */
export function formatDateTime(at: string | null): string {
  if (at === null) return "—"
  const date = new Date(at)
  const today = date.toDateString() === new Date().toDateString()
  const time = date.toLocaleTimeString([], { hour12: false })
  return today ? time : `${date.toLocaleDateString()} ${time}`
}
