// Removes what the oldest supported browsers (Chrome 100, Firefox 100, Safari 15.4) lack, or have on https only, so that a use
// of it fails. Tests load this first. APIs and their versions: MDN's browser-compat-data.

const MISSING = {
  // On plain http outside localhost.
  "Crypto.prototype": ["randomUUID", "subtle"],
  "Navigator.prototype": ["locks", "storage", "clipboard", "serviceWorker"],
  // In one of these browsers at least.
  "URLSearchParams.prototype": ["size"],
  URL: ["canParse", "parse"],
  AbortSignal: ["any", "timeout"],
  Response: ["json"],
  "Headers.prototype": ["getSetCookie"],
  "Document.prototype": ["startViewTransition"],
  globalThis: ["requestIdleCallback", "scheduler", "navigation", "TextDecoderStream", "CompressionStream"],
}

/** Not in tests in Node, which uses these itself. There, TypeScript's `lib` forbids most. */
const MISSING_IN_BROWSERS = {
  ReadableStream: ["from"],
  "ReadableStream.prototype": [Symbol.asyncIterator, "values"],
  Promise: ["withResolvers", "try"],
  Object: ["groupBy"],
  Map: ["groupBy"],
  Array: ["fromAsync"],
  "Array.prototype": ["findLast", "findLastIndex", "toSorted", "toReversed", "toSpliced", "with"],
  "String.prototype": ["isWellFormed", "toWellFormed"],
  "Set.prototype": ["union", "intersection", "difference", "symmetricDifference", "isSubsetOf", "isSupersetOf"],
  "Iterator.prototype": ["map", "filter", "take", "drop", "flatMap", "reduce", "toArray", "forEach", "some", "every"],
}

const isNode = typeof process !== "undefined"
for (const [path, names] of Object.entries({ ...MISSING, ...(isNode ? {} : MISSING_IN_BROWSERS) })) {
  const owner = path === "globalThis" ? globalThis : path.split(".").reduce((one, name) => one?.[name], globalThis)
  for (const name of owner ? names : []) delete owner[name]
}
