import { expect, test } from "vitest"
import { buildFields, parseField } from "../src/components/inputFields.js"

function read(schema: unknown, value: unknown, text?: string): unknown {
  const [field] = buildFields({ name: { value, description: null, schema } })
  if (field === undefined) throw new Error("no field")
  return parseField(text === undefined ? field : { ...field, text })
}

test("a field keeps its value if it is not changed", () => {
  const cases: [unknown, unknown][] = [
    [{}, "text"],
    [{}, 3],
    [{}, true],
    [{}, null],
    [{}, { a: [1] }],
    [{ type: "string" }, ""],
    [{ type: ["null", "string"] }, null],
    [{ type: "integer" }, 0],
    [{ type: "array" }, [1, "x"]],
    [{ enum: ["matt", "glossy"] }, "glossy"],
  ]
  for (const [schema, value] of cases) {
    expect(read(schema, value), JSON.stringify([schema, value])).toEqual(value)
  }
})

test("members of a schema that are no JSON Schema are ignored", () => {
  const schemas = [
    { enum: "abc" },
    { enum: {} },
    { type: 5 },
    { type: {} },
    { type: [5, null] },
    { title: {} },
    "x",
    5,
    [],
    null,
  ]
  for (const schema of schemas) {
    const [field] = buildFields({ name: { value: "text", description: null, schema } })
    expect(field, JSON.stringify(schema)).toMatchObject({ kind: "text", label: "name", text: "text", choices: [] })
    expect(read(schema, "text"), JSON.stringify(schema)).toBe("text")
  }
})

test("a changed text becomes a value of the type in the schema", () => {
  expect(read({ type: "integer" }, 1, "4")).toBe(4)
  expect(read({ type: "string" }, "", "4")).toBe("4")
  expect(read({ type: ["null", "string"] }, "x", "")).toBeNull()
  expect(read({ type: "boolean" }, false, "true")).toBe(true)
  expect(read({ type: "object" }, {}, '{"a": 1}')).toEqual({ a: 1 })
  expect(read({ enum: [1, 2] }, 1, "2")).toBe(2)
  expect(() => read({ type: "number" }, 1, "many")).toThrow("name must be a number")
  expect(() => read({ type: "object" }, {}, "{")).toThrow("name must be JSON")
})
