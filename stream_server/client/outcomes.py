"""Outcomes of runs, as calls return them."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from stream_server.client.errors import (
    NoResult,
    ResultTooLarge,
    ResultWithheld,
    RunFailed,
    SeveralResults,
)
from stream_server.client.frames import End, Failure, Result
from stream_server.protocol.bodies import FailureInfo, WaitingInfo
from stream_server.protocol.frame_members import Reference

_SENT_BEFORE = "the stream was resumed after its outcome was sent; `wait` of the stream or of the client returns it"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a run. The members are those of `GET …/result`."""

    dag_id: str
    run_id: str = msgspec.field(name="dag_run_id")
    state: str | None = None
    """State of the run, which may still be running."""

    outcome: Literal["result", "failure", "none", "pending"] = "pending"
    reason: str | None = None
    """Why there is no outcome."""

    task_id: str | None = None
    """The first result task that was skipped."""

    results: dict[str, Any] = msgspec.field(default_factory=dict)
    """Value by task; of a mapped task a list by `map_index`."""

    references: dict[str, Reference] = msgspec.field(default_factory=dict)
    """By task, where to get a value that is too large to be sent."""

    map_indexes: dict[str, list[int]] = msgspec.field(default_factory=dict)
    withheld: bool = False
    """Whether values are left out because the caller may not read them."""

    failure: FailureInfo | None = None
    tasks: dict[str, int] = msgspec.field(default_factory=dict)
    """Number of task instances by state, while the outcome is pending."""

    waiting: WaitingInfo | None = None
    """Why the run does not proceed, while the outcome is pending."""

    @property
    def value(self) -> Any:
        """The value of the only result task that has one.

        Raises:
            RunFailed: It is certain that there will be no result.
            NoResult: There is none, or it cannot be sent, or several tasks have one.
        """
        key = (self.dag_id, self.run_id)
        if self.outcome != "result":
            raise self.build_error()
        names = sorted({*self.results, *self.references})
        if self.withheld:
            raise ResultWithheld(*key, "Airflow denies the caller access to XComs")
        if len(names) > 1:
            raise SeveralResults(*key, f"the tasks {', '.join(names)} have one; use `wait().results`")
        if self.references:
            (reference,) = self.references.values()
            raise ResultTooLarge(
                *key, f"{reference.bytes} bytes are too many to send; get it from Airflow: {reference.href}"
            )
        if not self.results:
            raise NoResult(*key, _SENT_BEFORE)
        (value,) = self.results.values()
        return value

    def build_error(self) -> NoResult:
        """Return the exception for an outcome other than `result`."""
        key = (self.dag_id, self.run_id)
        if self.outcome == "failure" and self.failure is not None:
            return RunFailed(*key, self.failure)
        if self.outcome == "failure":
            return NoResult(*key, _SENT_BEFORE)
        if self.outcome == "pending":
            return NoResult(*key, "the outcome is not known yet")
        reason = (self.reason or "it has ended without one").replace("_", " ")
        return NoResult(*key, reason, reason=self.reason, task_id=self.task_id)

    def _repr_html_(self) -> str:
        shown = self.failure if self.outcome == "failure" else self.results if self.outcome == "result" else self.reason
        text = format_json(shown)
        return (
            f"<b>{html.escape(self.dag_id)}</b> {html.escape(self.run_id)}:"
            f" {self.outcome}<pre>{html.escape(text)}</pre>"
        )


def format_json(value: Any) -> str:
    """Return a value as indented JSON."""
    try:
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
    except UnicodeEncodeError:
        # A lone surrogate, which only an escape sequence can represent.
        return json.dumps(msgspec.to_builtins(value), indent=2)


def build_outcome(end: End, last: Result | Failure | None) -> Outcome:
    """Return the outcome that a stream has sent.

    Args:
        end: The last frame.
        last: The last result or failure that was not retracted.
    """
    members: Mapping[str, Any] = {}
    if isinstance(last, Result):
        members = {name: getattr(last, name) for name in ("results", "references", "map_indexes", "withheld")}
    elif isinstance(last, Failure):
        members = {"failure": FailureInfo(**{name: getattr(last, name) for name in FailureInfo.__struct_fields__})}
    return Outcome(
        dag_id=end.dag_id,
        run_id=end.run_id,
        state=end.state,
        outcome=end.outcome,
        reason=end.reason,
        task_id=end.task_id,
        **members,
    )
