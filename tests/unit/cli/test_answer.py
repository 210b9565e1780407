"""Questions of tasks on a terminal, and the values of `stream-server answer`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

from stream_server.cli.answer import Answer, Prompter, describe_request, parse_choice, parse_params
from stream_server.client import Refused
from stream_server.protocol.input_frames import Input, InputAnswered, InputParam

NOW = datetime(2026, 11, 22, tzinfo=timezone.utc)


def question(**members: Any) -> Input:
    given: dict[str, Any] = {"subject": "Go on?", "options": ["Approve", "Reject"], **members}
    return Input(dag_id="d", run_id="r", task_id="ask", map_index=-1, try_number=1, asked_at=NOW, **given)


def answered(**members: Any) -> InputAnswered:
    return InputAnswered(
        dag_id="d", run_id="r", task_id="ask", map_index=-1, try_number=1, asked_at=NOW, answered_at=NOW, **members
    )


class Terminal:
    """A user with prepared lines, and what is sent and shown."""

    def __init__(self, lines: Iterable[str], refusals: int = 0, status: int = 422) -> None:
        self._lines = [*lines]
        self._refusals, self._status = refusals, status
        self.shown: list[str] = []
        self.sent: list[Answer] = []
        self.prompter = Prompter(self._read_line, self.shown.append, self._send)

    async def _read_line(self, prompt: str) -> str | None:
        self.shown.append(prompt)
        return self._lines.pop(0) if self._lines else None

    async def _send(self, request: Input, answer: Answer) -> None:
        self.sent.append(answer)
        if len(self.sent) <= self._refusals:
            raise Refused(self._status, "Not so")

    async def ask(self, request: Input) -> list[Answer]:
        assert self.prompter.open(request)
        await self.prompter.ask(request)
        return self.sent


@pytest.mark.parametrize(
    ("line", "members", "expected"),
    [
        ("1", {}, ["Approve"]),
        (" Reject ", {}, ["Reject"]),
        ("3", {}, None),
        ("0", {}, None),
        ("maybe", {}, None),
        ("", {}, None),
        ("", {"defaults": ["Reject"]}, ["Reject"]),
        ("1,2", {}, None),
        ("1, Reject", {"multiple": True}, ["Approve", "Reject"]),
        ("2, 2, Reject", {"multiple": True}, ["Reject"]),
        ("a, b", {"options": ["a, b", "c"]}, ["a, b"]),
    ],
)
def test_options_are_chosen_by_number_or_name(line: str, members: dict[str, Any], expected: list[str] | None) -> None:
    assert parse_choice(line, question(**members)) == expected


async def test_a_question_is_repeated_until_an_option_is_chosen() -> None:
    terminal = Terminal(["no", "2"])
    assert await terminal.ask(question()) == [Answer(["Reject"], {})]
    assert terminal.shown.count("Choice: ") == 2


async def test_fields_of_the_form_keep_their_values_or_get_others() -> None:
    params = {
        "reason": InputParam(value=msgspec.Raw(b"null"), description="Why?", schema=msgspec.Raw(b"{}")),
        "count": InputParam(value=msgspec.Raw(b"3"), description=None, schema=msgspec.Raw(b"{}")),
        "kept": InputParam(value=msgspec.Raw(b"[1]"), description=None, schema=msgspec.Raw(b"{}")),
    }
    terminal = Terminal(["1", "too late", "4", ""])
    assert await terminal.ask(question(params=params)) == [
        Answer(["Approve"], {"reason": "too late", "count": 4, "kept": [1]})
    ]
    assert "reason (Why?) [null]: " in terminal.shown


@pytest.mark.parametrize(
    ("schema", "line", "expected"),
    [
        (b'{"type":"string"}', "4", "4"),
        (b'{"type":"string"}', "null", "null"),
        (b'{"type":"string"}', '"4"', "4"),
        (b'{"type":["null","string"]}', "[1]", "[1]"),
        (b'{"type":["null","string"]}', "null", None),
        (b'{"type":"integer"}', "4", 4),
        (b'{"type":5}', "4", 4),
        (b'"string"', "4", 4),
    ],
)
async def test_a_field_for_text_gets_the_text(schema: bytes, line: str, expected: object) -> None:
    param = InputParam(value=msgspec.Raw(b'"before"'), description=None, schema=msgspec.Raw(schema))
    answers = await Terminal(["1", line]).ask(question(params={"name": param}))
    assert answers == [Answer(["Approve"], {"name": expected})]


async def test_control_characters_of_a_question_do_not_reach_the_terminal() -> None:
    text = "a\x1b[2J\x9b\x7f\r\n\tb"
    param = InputParam(value=msgspec.Raw('"\x9b"'.encode()), description=text, schema=msgspec.Raw(b"{}"))
    terminal = Terminal(["1", ""])
    await terminal.ask(question(subject=text, body=text, options=[text], params={text: param}))
    shown = "".join(terminal.shown)
    assert "a\ufffd[2J\ufffd\ufffd\n\tb" in shown
    assert not {one for one in shown if not one.isprintable()} - {"\n", "\t"}


async def test_a_refused_answer_can_be_corrected() -> None:
    terminal = Terminal(["1", "2"], refusals=1)
    assert await terminal.ask(question()) == [Answer(["Approve"], {}), Answer(["Reject"], {})]
    assert "Not so (HTTP 422)" in terminal.shown


async def test_an_answer_that_comes_too_late_is_not_repeated() -> None:
    terminal = Terminal(["1", "2"], refusals=1, status=409)
    assert await terminal.ask(question()) == [Answer(["Approve"], {})]


async def test_the_end_of_the_input_answers_nothing() -> None:
    assert await Terminal([]).ask(question()) == []


async def test_a_question_that_was_answered_meanwhile_is_not_answered() -> None:
    terminal = Terminal(["1"])
    assert terminal.prompter.open(question())
    terminal.prompter.close(answered())
    await terminal.prompter.ask(question())
    assert terminal.sent == []


def test_a_question_is_put_once_and_never_without_its_content() -> None:
    prompter = Terminal([]).prompter
    assert prompter.open(question())
    assert not prompter.open(question(expires_at=NOW))
    assert not Terminal([]).prompter.open(question(options=[], withheld=True))


async def test_a_question_of_another_iteration_stays_open() -> None:
    terminal = Terminal(["1"])
    assert terminal.prompter.open(question(iteration=1))
    terminal.prompter.close(answered(iteration=0))
    await terminal.prompter.ask(question(iteration=1))
    assert terminal.sent == [Answer(["Approve"], {})]
    assert "ask (iteration 1) asks" in "".join(terminal.shown)


def test_a_question_as_text() -> None:
    assert describe_request(question(body="More")) == "ask asks: Go on?\nMore\n  1 Approve\n  2 Reject"


def test_values_are_json_or_text() -> None:
    assert parse_params(["n=1", "text=why not", "list=[1]", "empty=", "eq=a=b"]) == {
        "n": 1,
        "text": "why not",
        "list": [1],
        "empty": "",
        "eq": "a=b",
    }
    with pytest.raises(ValueError, match="name=value"):
        parse_params(["reason"])
