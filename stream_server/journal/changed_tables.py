"""Queries that fail because Airflow was migrated meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from stream_server.errors import JournalMissing


class HasQueries(Protocol):
    """Caches queries for the columns of Airflow's tables."""

    @property
    def has_queries(self) -> bool:
        """Whether any are cached. A read that begins without any asks for the columns itself."""

    def forget_queries(self) -> None:
        """Have the next read ask for the columns again."""


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=HasQueries)


def repeat_for_new_tables(
    read: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make a method repeat its reads once, with new queries, if a table or a column was missing."""

    @wraps(read)
    async def read_again(self: S, /, *arguments: P.args, **options: P.kwargs) -> R:
        # Before the read, which forgets the queries where a table is missing.
        had_queries = self.has_queries
        try:
            return await read(self, *arguments, **options)
        except JournalMissing:
            if not had_queries:
                raise
            self.forget_queries()
            return await read(self, *arguments, **options)

    return read_again
