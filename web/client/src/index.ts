export * from "./frames.js"
