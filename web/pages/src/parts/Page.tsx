import type { ReactNode } from "react"
import type { Session } from "../server.js"
import { signOut, useSession } from "../session.js"
import { useAsked } from "../useAsked.js"
import { SignIn } from "./SignIn.js"

interface Props {
  readonly title: string
  readonly here: "runs" | "chat" | null
  readonly children: ReactNode
}

/** What is around every page: the way to the others, and the form for who must sign in. */
export function Page({ title, here, children }: Props) {
  const { needed } = useSession()
  const { value: session } = useAsked<Session>("/api/v2/stream/session")
  return (
    <>
      <title>{`${title} · stream_server`}</title>
      <a className="skip" href="#content">
        To the content
      </a>
      <header className="bar">
        <a className="brand" href="/">
          <img src="/favicon.svg" alt="" width="24" height="24" />
          stream_server
        </a>
        <nav aria-label="Pages">
          <a href="/" aria-current={here === "runs" ? "page" : undefined}>
            Runs
          </a>
          <a href="/chat" aria-current={here === "chat" ? "page" : undefined}>
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
        {needed && <SignIn />}
        {children}
      </main>
    </>
  )
}
