"""OpenAI's Chat Completions API, so that its clients can ask DAGs. A model is a DAG with the tag `chat`.

Paths are served with and without `/v1`: users type both as base URL.
"""
