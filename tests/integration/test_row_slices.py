"""Reading of many rows, on a real PostgreSQL."""

from __future__ import annotations

import pytest

from stream_server.journal.connection import close_connection, connect
from stream_server.journal.row_slices import ROWS_AT_ONCE, fetch_in_slices

NUMBERS = "SELECT number, $1::text AS name FROM generate_series(1, $2::integer) AS number ORDER BY number DESC -- last"


@pytest.mark.parametrize("count", [0, 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 4 * ROWS_AT_ONCE])
@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize("query", [NUMBERS, NUMBERS.replace("-- last", "LIMIT 1000")])
async def test_the_rows_are_those_of_a_fetch(journal: str, count: int, in_transaction: bool, query: str) -> None:
    connection = await connect(journal)
    try:
        if in_transaction:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                rows = await fetch_in_slices(connection, query, "a", count)
        else:
            rows = await fetch_in_slices(connection, query, "a", count)
        assert rows == await connection.fetch(query, "a", count)
        assert not connection.is_in_transaction()
    finally:
        await close_connection(connection)
