"""What the chat APIs share: the DAGs that answer questions, starting a run for a question, and its answer as text.

A DAG with the tag `chat` answers questions. It gets the `conf` that the chat page sends.
"""
