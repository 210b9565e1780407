"""The members of Airflow's answers that are read (`airflow.api_fastapi.core_api.datamodels`).

An answer of another shape raises `AirflowNotResponding`, wherever it is read.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec

from stream_server.protocol.input_frames import InputUser

StorableName = Annotated[str, msgspec.Meta(pattern=r"^[^\x00\ud800-\udfff]+$")]
"""A name that PostgreSQL can store. A JSON string can also have NUL, and half a surrogate pair."""


class TokenBody(msgspec.Struct):
    """Answer to a login."""

    access_token: StorableName


class RunBody(msgspec.Struct):
    """The name of a DAG run."""

    dag_run_id: StorableName


class RunStateBody(msgspec.Struct):
    """The state of a DAG run."""

    state: StorableName


class RunPage(msgspec.Struct):
    """List of DAG runs."""

    dag_runs: list[Any]


class XComPage(msgspec.Struct):
    """List of XComs."""

    xcom_entries: list[Any]


class RequestPage(msgspec.Struct):
    """List of requests for human input."""

    hitl_details: list[Any]


class LoopIterationBody(msgspec.Struct):
    """Where a task instance is in a task loop."""

    iteration: int


class InstanceBody(msgspec.Struct):
    """The coordinates of a task instance in Airflow 3.4."""

    region_id: str | None = None
    region_index: int | None = None
    loop_iteration: LoopIterationBody | None = None


class InstancePage(msgspec.Struct):
    """List of task instances."""

    task_instances: list[InstanceBody]


class AnswerBody(msgspec.Struct):
    """Answer to a request for human input."""

    responded_by: InputUser
    responded_at: datetime
    chosen_options: list[str]
    params_input: dict[str, Any] = {}


class DagBody(msgspec.Struct):
    """The name of a DAG."""

    dag_id: StorableName


class DagPage(msgspec.Struct):
    """List of DAGs."""

    dags: list[DagBody]
