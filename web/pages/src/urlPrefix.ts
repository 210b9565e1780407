/** What precedes all paths, if a proxy serves the pages below a path: the server writes it into the HTML file. */
export const URL_PREFIX =
  // There is no document in tests of single modules.
  globalThis.document?.querySelector('meta[name="url-prefix"]')?.getAttribute("content") ?? ""
