import { type SubmitEvent, useEffect, useRef, useState } from "react"
import { ApiError, fetchJson, messageOfError, type Session } from "../api/api.js"
import { completeSignIn, signIn, useSignInState } from "./signInState.js"

/** Signs in to Airflow. The rest of the page stays, and continues after the sign-in. */
export function SignInForm() {
  const { reason } = useSignInState()
  const [session, setSession] = useState<Session | null>(null)
  const [withToken, setWithToken] = useState(false)
  const [error, setError] = useState<string | null>(null)
  const [busy, setBusy] = useState(false)
  const heading = useRef<HTMLHeadingElement>(null)

  useEffect(() => {
    heading.current?.focus()
    fetchJson<Session>("/api/v2/stream/session").then(setSession, () => setSession(null))
  }, [])

  async function submit(event: SubmitEvent<HTMLFormElement>) {
    event.preventDefault()
    const form = new FormData(event.currentTarget)
    const text = (name: string) => `${form.get(name) ?? ""}`
    setBusy(true)
    setError(null)
    try {
      await signIn(withToken ? { token: text("token") } : { username: text("username"), password: text("password") })
    } catch (error) {
      const isRefused = error instanceof ApiError && error.status === 401 && !withToken
      setError(isRefused ? "Wrong user name or password. Check both and try again." : messageOfError(error))
      setBusy(false)
    }
  }

  return (
    <section className="card sign-in" aria-labelledby="sign-in">
      <h2 id="sign-in" tabIndex={-1} ref={heading}>
        Sign in to Airflow
      </h2>
      <p>
        Sign in to see the runs that you have permission to read in Airflow.
        {reason !== "" && <span className="faint"> {reason}</span>}
      </p>
      <form onSubmit={(event) => void submit(event)}>
        {withToken ? (
          <label>
            Airflow API token
            <input name="token" type="password" autoComplete="off" required />
          </label>
        ) : (
          <>
            <label>
              User name
              <input name="username" autoComplete="username" required />
            </label>
            <label>
              Password
              <input name="password" type="password" autoComplete="current-password" required />
            </label>
          </>
        )}
        <p role="alert" className="problem">
          {error}
        </p>
        <div className="row">
          <button type="submit" disabled={busy}>
            {busy ? "Signing in…" : "Sign in"}
          </button>
          <button type="button" className="quiet" onClick={() => setWithToken(!withToken)}>
            {withToken ? "Use name and password" : "Use a token"}
          </button>
        </div>
      </form>
      {session?.airflow_ui_url && (
        <p className="faint">
          If Airflow’s UI is on this host, you can also <a href={session.airflow_ui_url}>sign in there</a>, then{" "}
          <button type="button" className="link" onClick={completeSignIn}>
            continue here
          </button>
          .
        </p>
      )}
    </section>
  )
}
