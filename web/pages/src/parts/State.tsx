/** A state of a task or run: Airflow's colour, and its name. */
export function State({ state }: { state: string | null }) {
  const name = state ?? "no_status"
  return (
    <span className="state" data-state={name}>
      {name.replaceAll("_", " ")}
    </span>
  )
}
