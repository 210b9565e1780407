import { placeOf } from "./place.js"

export function App() {
  const place = placeOf(location.pathname)
  return <main>{place.page}</main>
}
