import { useEffect, useState } from "react"
import { ask, Refused } from "./server.js"
import { signInNeeded, useSession } from "./session.js"

export interface Asked<Answer> {
  readonly value: Answer | null
  /** Why there is none, for people. */
  readonly error: string | null
}

/** Ask for something once, again after a sign-in, and whenever `attempt` changes. */
export function useAsked<Answer>(path: string, attempt = 0): Asked<Answer> {
  const { generation } = useSession()
  const [asked, setAsked] = useState<Asked<Answer>>({ value: null, error: null })

  // biome-ignore lint/correctness/useExhaustiveDependencies: who signs in has it asked again
  useEffect(() => {
    const controller = new AbortController()
    ask<Answer>(path, { signal: controller.signal }).then(
      (value) => setAsked({ value, error: null }),
      (error: Error) => {
        if (controller.signal.aborted) return
        const isUnknown = error instanceof Refused && error.status === 401
        // The form for signing in says so, once for all.
        if (isUnknown) signInNeeded(error.message)
        setAsked({ value: null, error: isUnknown ? null : error.message })
      },
    )
    return () => controller.abort()
  }, [path, generation, attempt])
  return asked
}
