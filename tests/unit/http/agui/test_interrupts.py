"""Requests for human input as interrupts."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

from stream_server.errors import BadRequest
from stream_server.http.agui.interrupts import build_interrupt, read_payload
from stream_server.protocol.input_frames import Input, InputParam
from support.builders import KEY

APPROVAL = ["Approve", "Reject"]


def build_request(options: list[str], **members: Any) -> Input:
    head = {**KEY._asdict(), "task_id": "ask", "map_index": -1, "try_number": 1}
    asked_at = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
    return Input(**{**head, "asked_at": asked_at, "options": options, "defaults": options[:1], **members})


@pytest.mark.parametrize("options", [["No", "Yes"], ["Reject", "Approve"], ["Approve", "Reject", "Later"], ["Approve"]])
@pytest.mark.parametrize("payload", [True, False, {"approved": True}, {"chosen_options": True}])
def test_a_boolean_answers_only_an_approval(options: list[str], payload: object) -> None:
    asks = build_request(options)
    assert build_interrupt(asks)["reason"] == "input_required"
    with pytest.raises(BadRequest, match="A boolean does not answer this question"):
        read_payload(payload, asks)


@pytest.mark.parametrize("payload", [None, {}, {"approve": True}, {"approved": "yes"}, 5, []])
def test_a_payload_without_an_option_is_refused(payload: object) -> None:
    with pytest.raises(BadRequest, match="must have `chosen_options`"):
        read_payload(payload, build_request(APPROVAL))


@pytest.mark.parametrize(("is_approved", "option"), [(True, "Approve"), (False, "Reject")])
def test_an_approval_is_a_boolean(is_approved: bool, option: str) -> None:
    assert build_interrupt(build_request(APPROVAL))["reason"] == "confirmation"
    assert read_payload(is_approved, build_request(APPROVAL)).chosen_options == [option]
    assert read_payload({"approved": is_approved}, build_request(APPROVAL)).chosen_options == [option]


def test_a_question_with_only_a_form_needs_no_option() -> None:
    param = InputParam(value=msgspec.Raw(b'"x"'), description=None, schema=msgspec.Raw(b"{}"))
    asks = build_request(["OK"], params={"approved": param})
    answer = read_payload({"approved": True}, asks)
    assert (answer.chosen_options, answer.params_input) == (["OK"], {"approved": True})
    assert read_payload(True, build_request(["OK"])).chosen_options == ["OK"]
    with pytest.raises(BadRequest):
        read_payload({"approved": False}, build_request(["OK"]))
