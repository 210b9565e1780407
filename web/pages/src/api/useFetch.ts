import { useEffect, useState } from "react"
import { requireSignIn, useSignInState } from "../session/signInState.js"
import { ApiError, fetchJson } from "./api.js"

export interface FetchState<Data> {
  readonly data: Data | null
  /** Why there are no data, as a text for users. */
  readonly error: string | null
}

/** Fetch JSON once, again after a sign-in, and when `attempt` changes. */
export function useFetch<Data>(path: string, attempt = 0): FetchState<Data> {
  const { signInCount } = useSignInState()
  const [state, setState] = useState<FetchState<Data>>({ data: null, error: null })

  // biome-ignore lint/correctness/useExhaustiveDependencies: a sign-in repeats the request
  useEffect(() => {
    const controller = new AbortController()
    fetchJson<Data>(path, { signal: controller.signal }).then(
      (data) => setState({ data, error: null }),
      (error: Error) => {
        if (controller.signal.aborted) return
        const isUnauthenticated = error instanceof ApiError && error.status === 401
        // The sign-in form shows this error.
        if (isUnauthenticated) requireSignIn(error.message)
        setState({ data: null, error: isUnauthenticated ? null : error.message })
      },
    )
    return () => controller.abort()
  }, [path, signInCount, attempt])
  return state
}
