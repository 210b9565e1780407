"""Questions of tasks in a real terminal, and the command `stream-server answer`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from stream_server.domain.run_state import RunKey
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.server import RunningServer
from support.streams import DEADLINE
from support.stub_callers import CallerPermissions
from support.terminal import Terminal
from support.waiting import eventually_async

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
PARAMS = {
    "reason": {"value": None, "description": "Why?", "schema": {"type": ["null", "string"]}},
    "count": {"value": 3, "description": None, "schema": {"type": "integer"}},
}


class Answers:
    """Airflow's side of an answer: it is written to the database, or refused."""

    def __init__(self, airflow: AirflowSql) -> None:
        self._airflow = airflow
        self.refusals: list[Response] = []
        """Responses before the first answer is accepted."""

        self.written = 0
        """Number of answers in the database."""

    async def respond(self, received: ReceivedRequest) -> Response:
        if self.refusals:
            return self.refusals.pop(0)
        _, _, _, _, dag_id, _, run_id, _, task_id, map_index, _ = received.target.split("/")
        answer = received.json
        await self._airflow.answer_input(
            RunKey(dag_id, run_id),
            task_id,
            *answer["chosen_options"],
            map_index=int(map_index),
            **answer.get("params_input", {}),
        )
        self.written += 1
        by = {"responded_by": {"id": "ada", "name": "Ada"}, "responded_at": "2026-11-22T14:21:10Z"}
        return JSONResponse({"chosen_options": answer["chosen_options"], "params_input": {}, **by})


@pytest.fixture
def answers(stub: AirflowStub, permissions: object, airflow: AirflowSql) -> Answers:
    answers, before = Answers(airflow), stub.instead
    assert before is not None

    async def respond(received: ReceivedRequest) -> Response | None:
        return await answers.respond(received) if received.method == "PATCH" else await before(received)

    stub.instead = respond
    return answers


def environment(server: RunningServer, stub: AirflowStub, caller: CallerPermissions) -> dict[str, str]:
    return {
        "STREAM_SERVER_URL": server.url,
        "STREAM_SERVER_AIRFLOW_URL": stub.url,
        "STREAM_SERVER_TOKEN": caller.token,
    }


async def ask(airflow: AirflowSql, key: RunKey, task_id: str = "ask", **fields: Any) -> None:
    await airflow.start_task(key, task_id)
    await airflow.request_input(key, task_id, **fields)
    await airflow.set_task(key, task_id, "awaiting_input")


async def proceed(airflow: AirflowSql, key: RunKey) -> None:
    for task_id in ("ask", "answer", "clean_up"):
        for state in ("queued", "running"):
            await airflow.set_task(key, task_id, state)
        await airflow.push(key, task_id, "because")
        await airflow.set_task(key, task_id, "success")
    await airflow.set_run(key, "success")


def bodies(requests: Iterable[ReceivedRequest]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in request.json.items() if name != "request_created_at"} for request in requests
    ]


async def test_tail_asks_until_the_answer_fits(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
) -> None:
    await ask(airflow, key, body="It is *late*.", params=PARAMS)
    variables = environment(auth_server, stub, ada)
    async with Terminal.running("tail", *key, environment=variables) as terminal:
        question = await terminal.until("Choice: ")
        assert "ask asks: Go on?\r\nIt is *late*.\r\n  1 Approve\r\n  2 Reject\r\n" in question
        terminal.type("maybe")
        await terminal.until("Choice: ")
        terminal.type("2")
        await terminal.until("reason (Why?) [null]: ")
        terminal.type("it is late")
        await terminal.until("count [3]: ")
        terminal.type("")
        await eventually_async(lambda: answers.written == 1, what="the answer comes")
        await proceed(airflow, key)
        assert await terminal.wait() == 0
    assert bodies(stub.patches) == [
        {"chosen_options": ["Reject"], "params_input": {"reason": "it is late", "count": 3}}
    ]
    assert "request_created_at" in stub.patches[0].json
    assert stub.patches[0].headers["authorization"] == f"Bearer {ada.token}"
    assert terminal.output.rfind(SHOW) > terminal.output.rfind(HIDE)


async def test_run_asks_and_writes_the_result(
    auth_server: RunningServer, stub: AirflowStub, answers: Answers, airflow: AirflowSql, ada: CallerPermissions
) -> None:
    key = RunKey("chat", "typed")
    variables = environment(auth_server, stub, ada)
    async with Terminal.running("run", "chat", "--run-id", key.run_id, environment=variables) as terminal:
        await terminal.until("triggered chat / typed")
        await ask(airflow, key, options=["a, b", "c"], multiple=True)
        await terminal.until("Choice: ")
        terminal.type("3")
        await terminal.until("Choice: ")
        terminal.type("1, 2")
        await eventually_async(lambda: answers.written == 1, what="the answer comes")
        await proceed(airflow, key)
        assert await terminal.wait() == 0
    assert bodies(stub.patches) == [{"chosen_options": ["a, b", "c"], "params_input": {}}]
    assert terminal.output.rstrip().endswith('"because"')


async def test_a_refused_answer_is_shown_and_can_be_corrected(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
) -> None:
    answers.refusals = [JSONResponse({"detail": "count is no number"}, 400)]
    await ask(airflow, key)
    variables = environment(auth_server, stub, ada)
    async with Terminal.running("tail", *key, environment=variables) as terminal:
        await terminal.until("Choice: ")
        terminal.type("1")
        await terminal.until("count is no number")
        await terminal.until("Choice: ")
        terminal.type("Reject")
        await eventually_async(lambda: answers.written == 1, what="the second answer comes")
        await proceed(airflow, key)
        assert await terminal.wait() == 0
    assert [body["chosen_options"] for body in bodies(stub.patches)] == [["Approve"], ["Reject"]]


async def test_a_question_without_the_right_to_answer_does_not_stop_the_table(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
) -> None:
    answers.refusals = [JSONResponse({"detail": "Ada is not a respondent"}, 403)]
    await ask(airflow, key)
    variables = environment(auth_server, stub, ada)
    async with Terminal.running("tail", *key, environment=variables) as terminal:
        await terminal.until("Choice: ")
        terminal.type("1")
        await terminal.until("Ada is not a respondent")
        await airflow.answer_input(key, "ask", "Approve", by="bob")
        await proceed(airflow, key)
        assert await terminal.wait() == 0
    assert len(stub.patches) == 1


async def test_a_question_that_was_answered_elsewhere_is_not_answered(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
) -> None:
    await ask(airflow, key)
    variables = environment(auth_server, stub, ada)
    async with Terminal.running("tail", *key, environment=variables) as terminal:
        await terminal.until("Choice: ")
        await airflow.answer_input(key, "ask", "Approve", by="bob")
        await proceed(airflow, key)
        assert await terminal.wait() == 0
    assert stub.patches == []
    assert terminal.output.rfind(SHOW) > terminal.output.rfind(HIDE)


async def test_two_questions_come_one_after_the_other(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
) -> None:
    await ask(airflow, key, subject="First?")
    await ask(airflow, key, "answer", subject="Second?")
    variables = environment(auth_server, stub, ada)
    async with Terminal.running("tail", *key, environment=variables) as terminal:
        first = await terminal.until("Choice: ")
        terminal.type("1")
        second = await terminal.until("Choice: ")
        await eventually_async(lambda: answers.written == 1, what="the first answer comes")
        terminal.type("2")
        await eventually_async(lambda: answers.written == 2, what="both answers come")
        await proceed(airflow, key)
        assert await terminal.wait() == 0
    assert ("First?" in first, "Second?" in second) in {(True, True), (False, False)}
    assert len({patch.target for patch in stub.patches}) == 2


async def test_a_pipe_gets_no_prompt(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
) -> None:
    await ask(airflow, key)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", "tail", *key),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **environment(auth_server, stub, ada)},
    )
    assert process.stdout is not None
    while json.loads(await asyncio.wait_for(process.stdout.readline(), DEADLINE * 3))["type"] != "input":
        pass
    await airflow.answer_input(key, "ask", "Approve")
    await proceed(airflow, key)
    output, _ = await asyncio.wait_for(process.communicate(b"1\n"), DEADLINE)
    assert (process.returncode, stub.patches) == (0, [])
    assert b"Choice" not in output


async def call(
    server: RunningServer, stub: AirflowStub, caller: CallerPermissions, *arguments: str
) -> tuple[int | None, str, str]:
    """Run a command of `stream-server`; return its exit code, its output and its errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stream_server", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment(server, stub, caller)},
    )
    output, errors = await asyncio.wait_for(process.communicate(), DEADLINE * 3)
    return process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--option", "Approve"], {"chosen_options": ["Approve"], "params_input": {}}),
        (["--option", "a, b", "--option", "c"], {"chosen_options": ["a, b", "c"], "params_input": {}}),
        (
            ["--option", "Approve", "--param", "count=4", "--param", "reason=it is late"],
            {"chosen_options": ["Approve"], "params_input": {"count": 4, "reason": "it is late"}},
        ),
    ],
    ids=["one option", "several", "params"],
)
async def test_the_command_sends_an_answer(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
    arguments: list[str],
    expected: dict[str, Any],
) -> None:
    await ask(airflow, key)
    code, output, errors = await call(auth_server, stub, ada, "answer", *key, "ask", *arguments)
    assert (code, errors) == (0, "")
    assert json.loads(output)["by"] == {"id": "ada", "name": "Ada"}
    assert bodies(stub.patches) == [expected]


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        (400, "['maybe'] is no option"),
        (403, "Ada is not a respondent"),
        (404, "no such task"),
        (409, "already updated"),
    ],
    ids=["wrong value", "no right", "unknown", "closed"],
)
async def test_the_command_reports_a_refusal(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    key: RunKey,
    ada: CallerPermissions,
    status: int,
    detail: str,
) -> None:
    answers.refusals = [JSONResponse({"detail": detail}, status)]
    code, output, errors = await call(auth_server, stub, ada, "answer", *key, "ask", "--option", "maybe")
    assert (code, output) == (64, "")
    assert detail in " ".join(errors.split())
    assert "Traceback" not in errors


@pytest.mark.parametrize("arguments", [[], ["--option", "Approve", "--param", "reason"]], ids=["no option", "no value"])
async def test_the_command_without_a_valid_answer_sends_nothing(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    key: RunKey,
    ada: CallerPermissions,
    arguments: list[str],
) -> None:
    code, output, errors = await call(auth_server, stub, ada, "answer", *key, "ask", *arguments)
    assert (code != 0, output, stub.patches) == (True, "", [])
    assert "--option" in errors or "--param" in errors


async def test_open_questions_are_listed(
    auth_server: RunningServer,
    stub: AirflowStub,
    answers: Answers,
    airflow: AirflowSql,
    key: RunKey,
    ada: CallerPermissions,
) -> None:
    assert await call(auth_server, stub, ada, "questions", *key) == (0, "", "")
    await ask(airflow, key, subject="First?")
    await ask(airflow, key, "answer", subject="Second?")
    code, output, errors = await call(auth_server, stub, ada, "questions", *key)
    assert (code, errors) == (0, "")
    assert [json.loads(line)["subject"] for line in output.splitlines()] == ["First?", "Second?"]

    await airflow.answer_input(key, "ask", "Approve")
    variables = environment(auth_server, stub, ada)
    async with Terminal.running("questions", *key, environment=variables) as terminal:
        assert await terminal.wait() == 0
    assert terminal.output.splitlines() == ["answer asks: Second?", "  1 Approve", "  2 Reject"]

    await proceed(airflow, key)
    async with Terminal.running("questions", *key, environment=variables) as terminal:
        assert await terminal.wait() == 0
    assert terminal.output.strip() == "No task of the run asks for input."


async def test_questions_of_an_unknown_run_are_refused(
    auth_server: RunningServer, stub: AirflowStub, answers: Answers, ada: CallerPermissions
) -> None:
    code, output, errors = await call(auth_server, stub, ada, "questions", "chat", "missing")
    assert (code, output) == (64, "")
    assert "missing" in errors
    assert "Traceback" not in errors
