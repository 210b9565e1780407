"""Reading of thousands of rows while the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

import asyncpg

from stream_server.journal.connection import AnyConnection, get_server_info

_P = ParamSpec("_P")
_T = TypeVar("_T")

ROWS_AT_ONCE = 300
"""Rows that the event loop handles in one step. asyncpg takes up to 12 µs for each, and we take 8."""


async def fetch_in_slices(connection: AnyConnection, query: str, *arguments: object) -> list[asyncpg.Record]:
    """Return all rows of a query, as `Connection.fetch`, which decodes whatever has arrived in one step.

    Where there are many rows, the query runs a second time, with a cursor. A cursor needs a transaction, which would
    cost two more round trips for each small run. Behind a pooler, which may lend the session to others, all rows are
    fetched at once.
    """
    if get_server_info(connection).is_pooled:
        return await connection.fetch(query, *arguments)
    # Materialised, so that the limit does not change the plan of the query: it may seem cheap to read an index in order
    # that has the instances of all runs.
    limited = f"WITH found AS MATERIALIZED (\n{query}\n) SELECT * FROM found LIMIT {ROWS_AT_ONCE + 1}"  # noqa: S608 # of our queries
    rows = await connection.fetch(limited, *arguments)
    if len(rows) <= ROWS_AT_ONCE:
        return rows
    rows = []
    async with connection.transaction():
        cursor = await connection.cursor(query, *arguments)
        while found := await cursor.fetch(ROWS_AT_ONCE):
            rows += found
    return rows


async def call_for_rows(
    function: Callable[Concatenate[Sequence[asyncpg.Record], _P], _T],
    rows: Sequence[asyncpg.Record],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> _T:
    """Call a function, in a thread if there are many rows."""
    if len(rows) > ROWS_AT_ONCE:
        return await asyncio.to_thread(function, rows, *args, **kwargs)
    return function(rows, *args, **kwargs)
