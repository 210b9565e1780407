"""DAGs as tools of agents: the Model Context Protocol over Streamable HTTP, revisions 2025-11-25 and 2026-07-28.

Nothing is stored for a client: sessions, states of requests and ids of tasks name what they stand for. So every worker
and every server can answer every request. The official SDK keeps sessions in the memory of one process, which is why
it is not used here; it is the client in the tests.
"""
