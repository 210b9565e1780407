"""The members of Airflow's answers that are read (`airflow.api_fastapi.core_api.datamodels`).

An answer of another shape raises `AirflowNotResponding`, wherever it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec

from stream_server.protocol.input_frames import InputUser

StorableName = Annotated[str, msgspec.Meta(pattern=r"^[^\x00\ud800-\udfff]+$")]
"""A name that PostgreSQL can store. A JSON string can also have NUL, and half a surrogate pair."""

AwareTime = Annotated[datetime, msgspec.Meta(tz=True)]


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


class RequestBody(msgspec.Struct):
    """A request for human input."""

    options: list[str]
    created_at: datetime
    multiple: bool | None = None
    params: dict[str, Any] | None = None
    response_received: bool = False

    def is_other_than(self, asked_at: str) -> bool:
        """Whether the task asked at another time. A text that is no time with a zone is left to Airflow."""
        try:
            return msgspec.convert(asked_at, AwareTime) != self.created_at
        except msgspec.ValidationError:
            return False

    def find_misfit(self, chosen_options: Sequence[str], params_input: Mapping[str, Any]) -> str | None:
        """Return why an answer would fail the task, as its operator would (`HITLOperator.execute_complete`)."""
        if unknown := [option for option in chosen_options if option not in self.options]:
            return f"{unknown} are no options of the request; it has {self.options}"
        if len(chosen_options) > 1 and not self.multiple:
            return f"The request permits one option, and the answer has {[*chosen_options]}"
        if self.params and params_input and params_input.keys() != self.params.keys():
            return f"The answer must have the fields {sorted(self.params)}, and it has {sorted(params_input)}"
        return None


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
