// The fields of a form, made of JSON Schemas. Pure.

import type { InputParam } from "airflow-stream-client"

export interface Field {
  readonly name: string
  readonly label: string
  /** `json`: any JSON value. */
  readonly kind: "text" | "number" | "boolean" | "choice" | "json"
  /** What the user sees and changes. */
  readonly text: string
  /** The values of `choice`, as texts, and what they stand for. */
  readonly choices: readonly string[]
  readonly values: readonly unknown[]
  readonly isNullable: boolean
}

/** What a form needs of a JSON Schema. */
interface Schema {
  readonly types: readonly string[]
  readonly choices: readonly unknown[]
  readonly title: string | undefined
}

/** Return the fields of a form in the order of its params. */
export function buildFields(params: Readonly<Record<string, InputParam>>): Field[] {
  return Object.entries(params).map(([name, param]) => buildField(name, param))
}

function buildField(name: string, { value, description, schema: given }: InputParam): Field {
  const schema = readSchema(given)
  const kind = selectKind(schema, value)
  const label = [schema.title ?? name, description].filter(Boolean).join(": ")
  const choices = schema.choices.map(toText)
  const text = kind === "json" ? JSON.stringify(value ?? null) : toText(value)
  const isNullable = schema.types.includes("null") || value == null
  const shown = kind === "choice" && !choices.includes(text) ? (choices[0] ?? "") : text
  return { name, label, kind, text: shown, choices, values: schema.choices, isNullable }
}

/** Members of another form than JSON Schema's are left out: Airflow stores what the author of a DAG has written. */
function readSchema(given: unknown): Schema {
  const { type, enum: choices, title } = (given ?? {}) as Record<string, unknown>
  const types = (Array.isArray(type) ? type : [type]).filter((one) => typeof one === "string")
  return { types, choices: Array.isArray(choices) ? choices : [], title: typeof title === "string" ? title : undefined }
}

/**
 * Return the value of a field.
 *
 * @throws Error if the text is not JSON, or not a number
 */
export function parseField({ name, kind, text, isNullable, choices, values }: Field): unknown {
  if (kind === "boolean") return text === "true"
  if (kind === "choice") return values[choices.indexOf(text)]
  if (text === "" && isNullable) return null
  if (kind === "text") return text
  try {
    const value: unknown = JSON.parse(text)
    if (kind === "json" || typeof value === "number") return value
  } catch {
    // Not JSON.
  }
  throw new Error(`${name} must be ${kind === "number" ? "a number" : "JSON"}`)
}

function selectKind({ types, choices }: Schema, value: unknown): Field["kind"] {
  if (choices.length > 0) return "choice"
  const [type = typeOf(value)] = types.filter((one) => one !== "null")
  if (type === "boolean") return "boolean"
  if (type === "number" || type === "integer") return "number"
  return type === "string" ? "text" : "json"
}

function typeOf(value: unknown): string {
  return value == null ? "string" : typeof value
}

function toText(value: unknown): string {
  if (value == null) return ""
  return typeof value === "string" ? value : JSON.stringify(value)
}
