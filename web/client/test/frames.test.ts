import { expect, test } from "vitest"
import { FRAME_TYPES } from "../src/index.js"

test("the types of frames are told once each", () => {
  expect(new Set(FRAME_TYPES).size).toBe(FRAME_TYPES.length)
})
