export type { Frame } from "airflow-stream-client"
