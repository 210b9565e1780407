"""Requests for human input: what tasks ask, and the answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec

from stream_server.domain.task_instances import SourceRow
from stream_server.domain.transition import ANSWERED, OPEN, Transition
from stream_server.protocol.frame_members import Reference
from stream_server.protocol.input_frames import Input, InputAnswered, InputParam, InputUser

WAITING_STATES = frozenset({"running", "deferred", "awaiting_input"})
"""States of a task instance in which its request is open."""

MAX_REQUEST_BYTES_OF_RUN = 4 * 1024 * 1024
"""How much content of requests is kept of a run."""

_NO_ROW = SourceRow()

_WHITESPACE = str.maketrans("\n\r\t", "   ")

RequestKey = tuple[str, int, int | None]
"""A task instance: task, `map_index` and the iteration of a task loop (Airflow 3.4), `None` outside of loops."""

InputFrames = Sequence[Input | InputAnswered]


class _User(msgspec.Struct, frozen=True):
    id: str | int
    name: str | None = None


class _Content(msgspec.Struct, frozen=True):
    """What a request and its answer contain."""

    subject: str
    options: list[str]
    body: str | None = None
    defaults: list[str] | None = None
    multiple: bool | None = None
    params: dict[str, msgspec.Raw] | None = None
    assignees: list[_User] | None = None
    by: _User | None = None
    chosen_options: list[str] | None = None
    params_input: dict[str, msgspec.Raw] | None = None


class RequestRecord(msgspec.Struct, frozen=True):
    """A request of the current try of a task instance, as `journal/sql/human_input.sql` returns it."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    asked_at: datetime
    bytes: int
    iteration: int | None = None
    is_taken_over: bool = False
    """Whether an earlier try had made the request."""

    expires_at: datetime | None = None
    answered_at: datetime | None = None
    content: _Content | None = None
    """`None` if it is too large."""

    @property
    def instance(self) -> RequestKey:
        return self.task_id, self.map_index, self.iteration

    @property
    def identity(self) -> tuple[datetime, int]:
        """What distinguishes the requests of a task instance; ascending."""
        return self.asked_at, self.try_number


_decoder = msgspec.json.Decoder(RequestRecord)


class _Param(msgspec.Struct, frozen=True):
    """A param in the form in which operators of the standard provider write it."""

    value: msgspec.Raw
    schema: dict[str, Any]
    description: str | None


def parse_record(text: str) -> RequestRecord | None:
    """Return a record; `None` if an operator has written something else than Airflow's API permits."""
    try:
        # `json` columns keep whitespace as it was written. A frame is one line; within strings, line ends are escaped.
        return _decoder.decode(text.translate(_WHITESPACE))
    except (msgspec.MsgspecError, RecursionError):
        return None


def is_open_row(transition: Transition, record: RequestRecord) -> bool:
    """Whether a journal row is about a request, rather than its answer."""
    return record.answered_at is None or transition.state == OPEN


def input_frames(transition: Transition) -> InputFrames:
    """Return the frames of a journal row, for streams of many runs."""
    record = None if transition.body is None else parse_record(transition.body)
    if record is None:
        return ()
    source = SourceRow(transition.seq, transition.at)
    if is_open_row(transition, record):
        return () if transition.state == ANSWERED else [_build_input(record, source)]
    return [_build_input_answered(record, source)]


@dataclass(frozen=True, slots=True)
class _KnownRequest:
    record: RequestRecord
    is_withdrawn: bool = False
    """Whether the task has proceeded without an answer."""

    def is_same(self, record: RequestRecord) -> bool:
        return self.record.identity == record.identity


class RunRequests:
    """The requests of the current tries of a run.

    Args:
        sends_unknown: Whether an answer to an unknown request also gives the frame of the request.
    """

    def __init__(self, *, sends_unknown: bool = True) -> None:
        self._sends_unknown = sends_unknown
        self._known: dict[RequestKey, _KnownRequest] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._known)

    def load(self, record: RequestRecord) -> None:
        """Add a request from the database."""
        self._put(_KnownRequest(record))

    def frames(self) -> InputFrames:
        """Return the frames that a new subscriber gets after the snapshot."""
        frames: list[Input | InputAnswered] = []
        for known in self._known.values():
            if not known.is_withdrawn:
                frames.append(_build_input(known.record))
                if known.record.answered_at is not None:
                    frames.append(_build_input_answered(known.record))
        return frames

    def apply(self, transition: Transition) -> InputFrames:
        """Apply a journal row, and return its frames. What is known already gives none."""
        record = None if transition.body is None else parse_record(transition.body)
        if record is None:
            return ()
        source, known = SourceRow(transition.seq, transition.at), self._known.get(record.instance)
        if known is not None and record.identity < known.record.identity:
            return ()
        is_known = known is not None and known.is_same(record)
        if is_open_row(transition, record):
            return (
                () if transition.state == ANSWERED else self._apply_request(record, known if is_known else None, source)
            )
        if is_known and known is not None and known.record.answered_at is not None:
            return ()
        self._put(_KnownRequest(record))
        is_missing = not is_known and (self._sends_unknown or transition.state is None)
        return [*([_build_input(record, source)] if is_missing else ()), _build_input_answered(record, source)]

    def update_instance(self, key: RequestKey, state: str | None, try_number: int, *, is_given_up: bool) -> None:
        """Drop the request of a task instance that starts another try, and withdraw one without an answer."""
        known = self._known.get(key)
        if known is None:
            return
        if is_given_up or known.record.try_number != try_number:
            self._remove(key)
        elif known.record.answered_at is None and state not in WAITING_STATES:
            # The row of an answer comes after that of the state: Airflow writes both in one transaction.
            self._known[key] = replace(known, is_withdrawn=True)

    def _apply_request(self, record: RequestRecord, known: _KnownRequest | None, source: SourceRow) -> InputFrames:
        # Read as it is now: its own row announces the answer.
        record = msgspec.structs.replace(record, answered_at=None)
        if known is not None and not known.is_withdrawn:
            has_news = known.record.expires_at is None and record.expires_at is not None
            if known.record.answered_at is not None or not has_news:
                return ()
        self._put(_KnownRequest(record))
        return [_build_input(record, source)]

    def _put(self, known: _KnownRequest) -> None:
        record = known.record
        self._remove(record.instance)
        if record.content is not None and self._bytes + record.bytes > MAX_REQUEST_BYTES_OF_RUN:
            known = replace(known, record=msgspec.structs.replace(record, content=None))
        self._known[record.instance] = known
        self._bytes += _kept_bytes(known)

    def _remove(self, key: RequestKey) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._bytes -= _kept_bytes(known)


def _kept_bytes(known: _KnownRequest) -> int:
    return 0 if known.record.content is None else known.record.bytes


def _build_input(record: RequestRecord, source: SourceRow = _NO_ROW) -> Input:
    content = record.content
    members: dict[str, Any] = {"reference": _reference(record)}
    if content is not None:
        members = {
            "subject": content.subject,
            "body": content.body,
            "options": content.options,
            "defaults": content.defaults,
            "multiple": bool(content.multiple),
            "params": {name: _param(value) for name, value in (content.params or {}).items()},
            "assignees": [_user(user) for user in content.assignees or ()],
        }
    return Input(**_identity(record, source), expires_at=record.expires_at, **members)


def _build_input_answered(record: RequestRecord, source: SourceRow = _NO_ROW) -> InputAnswered:
    content = record.content
    assert record.answered_at is not None, "the request was answered"
    members: dict[str, Any] = {"reference": _reference(record)}
    if content is not None:
        members = {
            "by": None if content.by is None else _user(content.by),
            "expired": content.by is None,
            "chosen_options": content.chosen_options or [],
            "params_input": content.params_input or {},
        }
    return InputAnswered(**_identity(record, source), answered_at=record.answered_at, **members)


def _identity(record: RequestRecord, source: SourceRow) -> dict[str, Any]:
    return {
        "dag_id": record.dag_id,
        "run_id": record.run_id,
        "task_id": record.task_id,
        "map_index": record.map_index,
        "iteration": record.iteration,
        "try_number": record.try_number,
        "asked_at": record.asked_at,
        "seq": source.seq,
        "at": source.at,
    }


def _reference(record: RequestRecord) -> Reference:
    path = (
        f"/api/v2/dags/{quote(record.dag_id, safe='')}/dagRuns/{quote(record.run_id, safe='')}"
        f"/taskInstances/{quote(record.task_id, safe='')}/{record.map_index}/hitlDetails"
    )
    return Reference(href=path, bytes=record.bytes)


def _user(user: _User) -> InputUser:
    return InputUser(id=str(user.id), name=user.name or str(user.id))


def _param(raw: msgspec.Raw) -> InputParam:
    """Return a param. Airflow's API shows a plain value as one without a schema (`BaseHITLDetail.get_params`)."""
    try:
        param = msgspec.json.decode(raw, type=_Param)
    except (msgspec.MsgspecError, RecursionError):
        return InputParam(value=raw, description=None, schema=msgspec.Raw(b"{}"))
    return InputParam(value=param.value, description=param.description, schema=_schema(raw))


class _Schema(msgspec.Struct):
    schema: msgspec.Raw


def _schema(raw: msgspec.Raw) -> msgspec.Raw:
    return msgspec.json.decode(raw, type=_Schema).schema
