import { lazy, Suspense } from "react"
import { ChatPage } from "./chat/ChatPage.js"
import { parseRoute } from "./routes.js"
import { RunsPage } from "./runs/RunsPage.js"

const RunPage = lazy(() => import("./run/RunPage.js"))

export function App() {
  const route = parseRoute(location.pathname)
  if (route.page === "chat") return <ChatPage />
  if (route.page === "runs") return <RunsPage />
  return (
    <Suspense fallback={null}>
      <RunPage dagId={route.dagId} runId={route.runId} />
    </Suspense>
  )
}
