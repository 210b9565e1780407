import { type SubmitEvent, useEffect, useRef, useState } from "react"
import { ask, messageOf, Refused, type Session } from "../server.js"
import { begun, signIn, useSession } from "../session.js"

/** Asks who the visitor is. What the page shows stays, and goes on where it was afterwards. */
export function SignIn() {
  const { reason } = useSession()
  const [session, setSession] = useState<Session | null>(null)
  const [withToken, setWithToken] = useState(false)
  const [problem, setProblem] = useState<string | null>(null)
  const [busy, setBusy] = useState(false)
  const heading = useRef<HTMLHeadingElement>(null)

  useEffect(() => {
    heading.current?.focus()
    ask<Session>("/api/v2/stream/session").then(setSession, () => setSession(null))
  }, [])

  async function submit(event: SubmitEvent<HTMLFormElement>) {
    event.preventDefault()
    const given = new FormData(event.currentTarget)
    const text = (name: string) => `${given.get(name) ?? ""}`
    setBusy(true)
    setProblem(null)
    try {
      await signIn(withToken ? { token: text("token") } : { username: text("username"), password: text("password") })
    } catch (error) {
      const isWrong = error instanceof Refused && error.status === 401
      setProblem(isWrong ? "Airflow knows nobody of that name and password." : messageOf(error))
      setBusy(false)
    }
  }

  return (
    <section className="card sign-in" aria-labelledby="sign-in">
      <h2 id="sign-in" tabIndex={-1} ref={heading}>
        Sign in to Airflow
      </h2>
      <p>
        Airflow decides what you may see, and does not know who you are, or no longer.
        {reason !== "" && <span className="faint"> {reason}</span>}
      </p>
      <form onSubmit={(event) => void submit(event)}>
        {withToken ? (
          <label>
            Token of Airflow’s API
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
          {problem}
        </p>
        <div className="row">
          <button type="submit" disabled={busy}>
            {busy ? "Signing in …" : "Sign in"}
          </button>
          <button type="button" className="quiet" onClick={() => setWithToken(!withToken)}>
            {withToken ? "With name and password" : "With a token"}
          </button>
        </div>
      </form>
      {session?.airflow_ui_url && (
        <p className="faint">
          Or <a href={session.airflow_ui_url}>sign in on Airflow’s own page</a>, if it is on this host, and{" "}
          <button type="button" className="link" onClick={begun}>
            go on here
          </button>
          .
        </p>
      )}
    </section>
  )
}
