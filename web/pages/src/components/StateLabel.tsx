/** The state of a task or run, in Airflow's colour. */
export function StateLabel({ state }: { state: string | null }) {
  const name = state ?? "no_status"
  return (
    <span className="state" data-state={name}>
      {name.replaceAll("_", " ")}
    </span>
  )
}
