import { lazy, Suspense } from "react"
import { ChatPage } from "./chat/ChatPage.js"
import { placeOf } from "./place.js"
import { RunsPage } from "./runs/RunsPage.js"

const RunPage = lazy(() => import("./run/RunPage.js"))

export function App() {
  const place = placeOf(location.pathname)
  if (place.page === "chat") return <ChatPage />
  if (place.page === "runs") return <RunsPage />
  return (
    <Suspense fallback={null}>
      <RunPage dagId={place.dagId} runId={place.runId} />
    </Suspense>
  )
}
