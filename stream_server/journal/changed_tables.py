"""Queries that fail because Airflow was migrated meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from stream_server.errors import JournalMissing


class HasQueries(Protocol):
    """Caches queries for the columns of Airflow's tables."""

    def forget_queries(self) -> bool:
        """Have the next read ask for the columns again. Return whether any queries were cached."""


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=HasQueries)


def repeat_for_new_tables(
    read: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make a method repeat its reads once, with new queries, if a table or a column was missing."""

    @wraps(read)
    async def read_again(self: S, /, *arguments: P.args, **options: P.kwargs) -> R:
        try:
            return await read(self, *arguments, **options)
        except JournalMissing:
            if not self.forget_queries():
                raise
            return await read(self, *arguments, **options)

    return read_again
