"""JSON bodies of responses that are no streams."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypedDict

import msgspec

from stream_server.protocol.frames import Reference


class FailureInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Why the answer will not come; the members are those of the `failure` frame."""

    reason: str
    task_id: str | None
    map_index: int | None
    try_number: int | None
    state: str | None
    predicted: bool


class RunAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a run ended for the caller. A run that failed is not a failed request."""

    dag_id: str
    dag_run_id: str
    """The run; the member has the name that Airflow's API gives it."""

    state: str | None
    """State of the run, which may still go on."""

    outcome: Literal["result", "failure", "none", "pending"]
    """What became of the answer; `none` where no task answers, `pending` where the time was up before."""

    results: dict[str, msgspec.Raw] | None = None
    """JSON value by task; of a mapped task a list by `map_index`."""

    references: dict[str, Reference] | None = None
    """Values too large to be sent."""

    withheld: bool = False
    """Whether there are values that the caller may not read."""

    failure: FailureInfo | None = None
    """Why the answer will not come."""

    tasks: dict[str, int] | None = None
    """Task instances by state, while the outcome is pending."""


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was told to stop."""

    dag_id: str
    dag_run_id: str
    state: str
    """State of the run now: while teardowns still run, it is not `failed` yet."""


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A ticket: it opens one of the streams, once."""

    ticket: str
    """To be put behind `?ticket=`."""

    expires_at: datetime
    """When it is no good any more, if it was not used."""

    paths: list[str]
    """What it is for, as they were asked for."""


class WaitLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the answer to `wait`, as Airflow has it."""

    state: str
    """State of the run."""

    results: dict[str, msgspec.Raw] = {}
    """Only in the last line: JSON value by task; of a mapped task a list by `map_index`."""

    references: dict[str, Reference] = {}


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The process runs."""

    status: Literal["ok"]
    """Always the same; that there is an answer is what is told."""


class TailReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """What the tail has of PostgreSQL."""

    connected: bool
    """Whether PostgreSQL answers."""

    doorbell: bool
    """Whether notifications come through; if not, the journal is looked into now and then."""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether streams are whole and live."""

    status: Literal["ready", "unavailable"]
    """Whether there are no problems."""

    problems: list[str]
    """Why streams can't be served."""

    warnings: list[str]
    """What an operator should look at, while streams go on."""

    tail: TailReadiness
    """How the journal is followed."""


class Problem(TypedDict):
    """What is wrong with a request (RFC 9457)."""

    type: str
    """A URN for what is wrong; the same for every occurrence."""

    title: str
    """The same in words."""

    status: int
    """HTTP status code of the answer."""

    detail: str
    """What was wrong, and what would be right."""


class Detail(TypedDict):
    """What is wrong with a request, as Airflow tells it."""

    detail: str | list[dict[str, msgspec.Raw]]
    """A text, or a list of what is wrong with which parameter."""


class RunItem(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a list."""

    dag_id: str
    run_id: str
    state: str
    """State of the run."""

    run_type: str
    """How it came to be: `manual`, `scheduled`, `backfill` or `asset_triggered`."""

    queued_at: datetime | None
    start_date: datetime | None
    end_date: datetime | None


class RunList(msgspec.Struct, frozen=True, kw_only=True):
    """The youngest runs that the caller may read, the youngest first."""

    runs: list[RunItem]
    """The runs."""

    cursor: str
    """From where on `/api/v2/stream` tells what has happened since."""


class DagItem(msgspec.Struct, frozen=True, kw_only=True):
    """A DAG to choose."""

    dag_id: str
    description: str | None
    """What its author says of it."""

    is_paused: bool
    """Whether its runs wait until it is unpaused."""


class DagList(msgspec.Struct, frozen=True, kw_only=True):
    """The DAGs that the caller may read, by name."""

    dags: list[DagItem]
    """The DAGs."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a page needs to know before anybody has signed in."""

    signed_in: bool
    """Whether the browser says who its visitor is, rightly or wrongly, and this server wants to know."""

    airflow_ui_url: str | None
    """Where Airflow's own pages are, if this server was told."""

    can_sign_in: bool
    """Whether this server knows an Airflow that can say who somebody is."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A task of a DAG."""

    task_id: str
    group_id: str | None
    """The innermost task group around it."""

    operator: str
    """What kind of task it is, as Airflow's pages name it: `@task`, `BashOperator`; empty where that is not known."""

    is_mapped: bool
    """Whether it is run once for each of some values."""

    is_setup: bool
    """Whether it prepares something for others."""

    is_teardown: bool
    """Whether it cleans up, whatever became of the others."""

    is_result: bool
    """Whether it answers, as far as nobody asks for another."""


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A task group of a DAG."""

    group_id: str
    """The group."""

    parent_id: str | None
    """The group around it, if there is one."""

    is_mapped: bool
    """Whether it is run once for each of some values."""


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """That a task comes before another."""

    source: str
    """The task that comes first."""

    target: str
    """The task that comes after it."""


class Structure(msgspec.Struct, frozen=True, kw_only=True):
    """The DAG of a run, in the version that most of its tasks have."""

    dag_id: str
    run_id: str
    nodes: list[Node]
    """Each behind those before it."""

    groups: list[NodeGroup]
    """Each before those within it."""

    edges: list[Edge]
    """The order of the tasks."""
