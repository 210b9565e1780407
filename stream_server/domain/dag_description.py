"""A DAG as its author describes it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple


class DagDescription(NamedTuple):
    """What tools of agents are made of."""

    dag_id: str
    title: str | None
    description: str | None
    documentation: str | None
    """Markdown (`doc_md`)."""

    tags: Collection[str]
    params: Any
    """Member `params` of the serialised DAG, a list of names and params, as JSON value; `None` if it can't be read."""
