import type { ReactNode } from "react"
import type { Session } from "../api/api.js"
import { useFetch } from "../api/useFetch.js"
import { SignInForm } from "../session/SignInForm.js"
import { signOut, useSignInState } from "../session/signInState.js"
import { URL_PREFIX } from "../urlPrefix.js"

interface Props {
  readonly title: string
  readonly current: "runs" | "chat" | null
  readonly children: ReactNode
}

/** The frame of each page: navigation, and the sign-in form when it is required. */
export function PageLayout({ title, current: here, children }: Props) {
  const { isSignInRequired: needed } = useSignInState()
  const { data: session } = useFetch<Session>("/api/v2/stream/session")
  return (
    <>
      <title>{`${title} · stream_server`}</title>
      <a className="skip" href="#content">
        Skip to content
      </a>
      <header className="bar">
        <a className="brand" href={`${URL_PREFIX}/`}>
          <img src={`${URL_PREFIX}/favicon.svg`} alt="" width="24" height="24" />
          stream_server
        </a>
        <nav aria-label="Pages">
          <a href={`${URL_PREFIX}/`} aria-current={here === "runs" ? "page" : undefined}>
            Runs
          </a>
          <a href={`${URL_PREFIX}/chat`} aria-current={here === "chat" ? "page" : undefined}>
            Chat
          </a>
        </nav>
        {session?.signed_in && !needed && (
          <button type="button" className="quiet" onClick={() => void signOut()}>
            Sign out
          </button>
        )}
      </header>
      <main id="content" tabIndex={-1}>
        {needed && <SignInForm />}
        {children}
      </main>
    </>
  )
}
