"""The official conformance tests of the Model Context Protocol (npm @modelcontextprotocol/conformance).

Its scenarios call tools by name. Those are DAGs here, and a play is what a run of one does.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from starlette.responses import JSONResponse, Response

from stream_server.domain.run_state import RunKey
from support import node
from support.airflow_sql import AirflowSql, serialized_dag
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.waiting import eventually_async

PACKAGE = "node_modules/@modelcontextprotocol/conformance/dist/index.js"
SUITE_SECONDS = 150.0

RESULT_TASK = "answer"

Play = Callable[[AirflowSql, RunKey, Any], Awaitable[None]]
"""Moves a run, whose `conf` is the last argument."""


class Tool(NamedTuple):
    """A DAG that the scenarios call."""

    play: Play
    asks: Mapping[str, Any] = MappingProxyType({})
    """Params of the requests for human input, by task."""

    params: Sequence[Any] = ()
    tags: tuple[str, ...] = ()

    def serialize(self, dag_id: str) -> dict[str, Any]:
        data: Any = serialized_dag(dag_id, {**{task_id: [RESULT_TASK] for task_id in self.asks}, RESULT_TASK: []})
        data["dag"]["params"] = list(self.params)
        return dict(data)


def _param(name: str, kind: str, default: object = None) -> list[Any]:
    """Return a param in its serialised form."""
    return [name, {"default": default, "schema": {"__type": "dict", "__var": {"type": kind}}}]


async def _answer(airflow: AirflowSql, key: RunKey, value: object) -> None:
    await airflow.set_run(key, "running")
    await airflow.run_task(key, RESULT_TASK, value)
    await airflow.set_run(key, "success")


def _return(value: object) -> Play:
    async def play(airflow: AirflowSql, key: RunKey, _conf: object) -> None:
        await _answer(airflow, key, value)

    return play


async def _greet(airflow: AirflowSql, key: RunKey, conf: Any) -> None:
    await _answer(airflow, key, f"Hello, {conf['name']}!")


async def _compute(airflow: AirflowSql, key: RunKey, conf: Any) -> None:
    """End at once, or never: no scenario needs a duration, and some cancel."""
    if conf["seconds"] <= 2:
        await _answer(airflow, key, "computed")


async def _fail(airflow: AirflowSql, key: RunKey, _conf: object) -> None:
    await airflow.set_run(key, "running")
    await airflow.start_task(key, RESULT_TASK)
    await airflow.set_task(key, RESULT_TASK, "failed")
    await airflow.set_run(key, "failed")


async def _ask_all(airflow: AirflowSql, key: RunKey, _conf: object) -> None:
    await airflow.set_run(key, "running")
    for task_id in TOOLS[key.dag_id].asks:
        await _ask(airflow, key, task_id)


async def _ask_first(airflow: AirflowSql, key: RunKey, _conf: object) -> None:
    await airflow.set_run(key, "running")
    await _ask(airflow, key, next(iter(TOOLS[key.dag_id].asks)))


async def _ask(airflow: AirflowSql, key: RunKey, task_id: str) -> None:
    params = TOOLS[key.dag_id].asks[task_id]
    await airflow.start_task(key, task_id)
    await airflow.request_input(key, task_id, subject="What is your name?", options=["OK"], params=params)
    await airflow.set_task(key, task_id, "awaiting_input")


def _field(value: object, **schema: object) -> dict[str, Any]:
    return {"value": value, "description": None, "schema": schema}


NAME = {"name": _field(None, type="string", minLength=1)}
CONFIRM = {"confirm": _field(None, type="boolean")}
DEFAULTS = {
    "name": _field("John Doe", type="string"),
    "age": _field(30, type="integer"),
    "score": _field(95.5, type="number"),
    "status": _field("active", type="string", enum=["active", "inactive", "pending"]),
    "verified": _field(True, type="boolean"),
}
COLOR = {"color": _field(None, type="string")}
OPTIONS = ["option1", "option2", "option3"]
TITLED = [{"const": f"value{number}", "title": f"Option {number}"} for number in (1, 2, 3)]
CHOICES = {
    "untitledSingle": _field(None, type="string", enum=OPTIONS),
    "titledSingle": _field(None, type="string", oneOf=TITLED),
    "legacyEnum": _field(None, type="string", enum=["opt1", "opt2"], enumNames=["Option One", "Option Two"]),
    "untitledMulti": _field(None, type="array", items={"type": "string", "enum": OPTIONS}),
    "titledMulti": _field(None, type="array", items={"anyOf": TITLED}),
}
CONTACT = {"username": _field(None, type="string"), "email": _field(None, type="string")}

TOOLS = {
    "test_simple_text": Tool(_return("This is a simple text response for testing.")),
    "test_error_handling": Tool(_fail),
    "test_tool_with_progress": Tool(_return("done")),
    "test_elicitation": Tool(_ask_all, {"user_name": CONTACT}, [_param("message", "string")]),
    "test_elicitation_sep1034_defaults": Tool(_ask_all, {"user_name": DEFAULTS}),
    "test_elicitation_sep1330_enums": Tool(_ask_all, {"user_name": CHOICES}),
    "test_input_required_result_multi_round": Tool(_ask_first, {"step1": NAME, "step2": COLOR}),
    "test_input_required_result_elicitation": Tool(_ask_all, {"user_name": NAME}),
    "test_input_required_result_request_state": Tool(_ask_all, {"confirm": CONFIRM}),
    "test_input_required_result_tampered_state": Tool(_ask_all, {"confirm": CONFIRM}),
    "test_reconnection": Tool(_return("done")),
    "greet": Tool(_greet, params=[_param("name", "string")], tags=("tool:no-task",)),
    "slow_compute": Tool(_compute, params=[_param("seconds", "integer"), _param("label", "string", "")]),
    "failing_job": Tool(_fail),
    "confirm_delete": Tool(_ask_all, {"confirm": CONFIRM}, [_param("filename", "string")]),
    "multi_input": Tool(_ask_all, {"user_name": NAME, "confirm": CONFIRM}),
}


async def _report(airflow: AirflowSql, key: RunKey, is_watched: Callable[[RunKey], bool]) -> None:
    await eventually_async(lambda: is_watched(key), what="a client watches")
    await airflow.set_run(key, "running")
    await airflow.start_task(key, RESULT_TASK)
    for index, part in enumerate((0.0, 0.5, 1.0)):
        await airflow.emit_output(key, RESULT_TASK, index, {"progress": part, "text": f"{part:.0%}"})
    await airflow.push(key, RESULT_TASK, "done")


async def serve_tools(stub: AirflowStub, airflow: AirflowSql, is_watched: Callable[[RunKey], bool]) -> None:
    """Add the tools to a stub, and let it play their runs and take answers.

    Args:
        stub: The stub.
        airflow: A session for answers.
        is_watched: Whether a client watches a run. Progress begins then.
    """
    for dag_id, tool in TOOLS.items():
        await stub.add_dag(airflow, tool.serialize(dag_id), ("tool", *tool.tags))
    confs: dict[str, Any] = {}
    answers: defaultdict[RunKey, list[Any]] = defaultdict(list)

    async def respond(received: ReceivedRequest) -> Response | None:
        parts = received.target.split("/")
        if received.method == "POST":
            confs[parts[4]] = received.json["conf"]
        if received.method != "PATCH" or not received.target.endswith("hitlDetails"):
            return None
        _, _, _, _, dag_id, _, run_id, _, task_id, *_ = parts
        key = RunKey(dag_id, run_id)
        answers[key].append(received.json["params_input"])
        await airflow.answer_input(key, task_id, *received.json["chosen_options"], **received.json["params_input"])
        asks = [*TOOLS[dag_id].asks]
        if len(answers[key]) == len(asks):
            await _answer(airflow, key, f"state-ok {json.dumps(answers[key])}")
        elif TOOLS[dag_id].play is _ask_first:
            await _ask(airflow, key, asks[len(answers[key])])
        user = {"id": "ada", "name": "Ada"}
        return JSONResponse({"responded_by": user, "responded_at": "2026-11-30T12:00:00Z", **received.json})

    reports: list[asyncio.Task[None]] = []

    async def play(session: AirflowSql, key: RunKey) -> None:
        if key.dag_id == "test_tool_with_progress":
            reports.append(asyncio.create_task(_report(airflow, key, is_watched)))
        else:
            await TOOLS[key.dag_id].play(session, key, confs[key.dag_id])

    stub.instead, stub.then = respond, play


async def run_scenarios(url: str, revision: str, directory: Path) -> dict[str, str]:
    """Run all scenarios of a revision; return the errors, by scenario and check."""
    clients = await asyncio.to_thread(node.installed_clients)
    process = await asyncio.create_subprocess_exec(
        *(node.node(), str(clients / PACKAGE), "server", "--url", url, "--requirements", revision),
        *("--output-dir", str(directory)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), SUITE_SECONDS)
    checks = _read_checks(directory)
    assert checks, output.decode()
    failed = {name: check for name, check in checks.items() if check["status"] in {"FAILURE", "WARNING"}}
    return {
        name: f"{check.get('errorMessage') or check['description']} {json.dumps(check.get('details'))[:500]}"
        for name, check in failed.items()
    }


def _read_checks(directory: Path) -> dict[str, Any]:
    return {
        f"{_name_scenario(path.parent.name)}: {check['id']}": check
        for path in directory.rglob("checks.json")
        for check in json.loads(path.read_text())
    }


def _name_scenario(directory: str) -> str:
    """Return the scenario of a directory `server-<scenario>-<time>`."""
    return re.sub(r"^server-(.*)-20\d\d-\d\d-\d\dT.*$", r"\1", directory)
