"""The journal of committed transitions in PostgreSQL.

Installing, reading, following and pruning it, and the tables beside it. All SQL is in `sql/`. Imports `domain` and
`protocol`. Start with `tail.py`.
"""
