"""The UI message stream of the AI SDK, so that `useChat` can ask DAGs (versions 5 to 7 of the npm package `ai`)."""
