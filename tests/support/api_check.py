"""Property test of the HTTP API: requests that `/openapi.json` allows, and many that it does not.

As a program (`make check-api`) it runs any number of examples of each operation; its last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import msgspec
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.responses import JSONResponse, Response

from stream_server.domain.run_state import RunKey
from stream_server.http.endpoints.tickets import TICKETS_PATH
from stream_server.http.openai.response_objects import encode_response_id
from stream_server.journal.installer import install_journal
from stream_server.settings import Settings
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest
from support.airflow_stub_fixtures import complete_run
from support.postgres import create_database_from_airflow_template, drop_database, running_postgres
from support.server import running_server
from support.waiting import eventually_async

KNOWN = {
    "dag_id": "chat",
    "run_id": "over",
    "task_id": "ask",
    "model": "chat",
    "chat_id": "c1",
    "thread_id": "t1",
    "response_id": encode_response_id(RunKey("chat", "over")),
}
"""A finished run, so that its streams end."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

TOO_LARGE = (414, 431)
"""Statuses of requests that are refused for their size; schemathesis does not know them."""

ENDLESS = ("text/event-stream", "application/x-ndjson")
MAX_STREAM_BYTES = 2000
"""Maximum of bytes that are read from a stream."""

SECONDS = 30.0


class CheckResult(NamedTuple):
    """Numbers of requests, and the errors."""

    seed: int
    statuses: dict[str, int]
    """Responses by status."""

    misses: list[str]
    """Errors, each with a way to reproduce it."""


@asynccontextmanager
async def serve_target(database_url: str) -> AsyncIterator[str]:
    """Start a server with a run, and a stub of Airflow that can trigger more."""
    options: dict[str, object] = {"max_joins_per_second": 1e6, "database_url": database_url, "port": 0}
    async with AirflowSql.open(database_url) as airflow, AirflowStub.serve(database_url, airflow) as stub:
        key = RunKey(KNOWN["dag_id"], KNOWN["run_id"])
        await airflow.connection.execute("INSERT INTO dag_tag (dag_id, name) VALUES ('chat', 'chat')")
        await airflow.trigger(key, stub.version, ["ask", "answer", "clean_up"])
        await complete_run(airflow, key)
        stub.instead, stub.then = _as_airflow, complete_run
        async with running_server(Settings.load(airflow_url=stub.url, grace_period=0, **options)) as server:
            await eventually_async(lambda: server.hub.is_live)
            yield server.url


async def _as_airflow(received: ReceivedRequest) -> Response | None:
    """Refuse the requests that Airflow would refuse."""
    if not re.match(
        r"/api/v2/dags((/(chat|~)/dagRuns(/over(/taskInstances/~/xcomEntries)?)?)?(\?|$))", received.target
    ):
        return JSONResponse({"detail": "not found"}, 404)
    if received.method != "POST":
        return None
    try:
        run_id = msgspec.json.decode(received.body, type=dict[str, Any]).get("dag_run_id")
    except msgspec.DecodeError:
        return JSONResponse({"detail": "The body is no object"}, 422)
    if run_id is not None and not (isinstance(run_id, str) and re.fullmatch(r"[A-Za-z0-9_.~:+-]{1,250}", run_id)):
        return JSONResponse({"detail": "The run ID is invalid"}, 422)
    return None


def check(url: str, examples: int, number: int) -> CheckResult:
    """Send requests, and check each response.

    Args:
        url: Of the server.
        examples: Of each operation, of each kind.
        number: Seed of the examples.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    asker = _OperationChecker(url)
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), "the document is a proper one"
        asker.check_operation(found.ok(), examples, number)
    return CheckResult(number, dict(sorted(asker.statuses.items())), [*asker.misses.values()])


class _OperationChecker:
    """Sends requests, and records what is wrong with the responses."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self.statuses: Counter[str] = Counter()
        self.misses: dict[str, str] = {}
        """One error of each kind, because many responses have the same error."""

    def check_operation(self, operation: APIOperation[Any, Any, Any, Any], examples: int, number: int) -> None:
        """Send examples of an operation."""
        bounded = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        for wrong in (False, True):
            # Making one takes longer than a few examples.
            cases = operation.as_strategy(generation_mode=GenerationMode("negative" if wrong else "positive"))
            # An operation without parameters, or with strings only, has no invalid request. It takes a second to find
            # that out, and the other requests are made of the same examples.
            with suppress(Unsatisfiable):
                for known in (True, False):
                    seed(number)(bounded(given(cases)(self._property_test(known=known, wrong=wrong))))()

    def _property_test(self, *, known: bool, wrong: bool) -> Callable[[Case[Any]], None]:
        def check_case(case: Case[Any]) -> None:
            self.send(case, known=known, wrong=wrong)

        return check_case

    def send(self, case: Case[Any], *, known: bool, wrong: bool) -> None:
        """Send one request, and check the response."""
        if known:
            case.path_parameters = {name: KNOWN[name] for name in case.path_parameters or {}}
            if case.operation.path == TICKETS_PATH and not wrong:
                case.body = {"paths": ["/api/v2/dags/chat/dagRuns/over/stream"]}
            if isinstance(case.body, dict) and "model" in case.body and not wrong:
                case.body["model"] = KNOWN["model"]
        arguments = {**case.as_transport_kwargs(base_url=self._url), "stream": True, "timeout": SECONDS}
        response = self._session.request(**arguments)
        _read_body(response)
        self.statuses[str(response.status_code)] += 1
        refused = known or not wrong or response.status_code in TOO_LARGE
        checks = [*CHECKS, *([] if refused else [negative_data_rejection])]
        media_type = _media_type(response)
        # OpenAPI 3.1 describes streams as text; frames have their own tests. Like Airflow's, `wait` has no media type.
        if media_type in ENDLESS:
            checks.remove(response_schema_conformance)
        elif not media_type and case.operation.path.endswith("/wait"):
            checks.remove(content_type_conformance)
        try:
            case.validate_response(response, checks=checks)
        except (Failure, FailureGroup) as error:
            kind = f"{case.operation.label} {response.status_code} {str(error)[:80]}"
            self.misses.setdefault(kind, str(error))


def _read_body(response: requests.Response) -> None:
    """Read a body; only the beginning of a stream without an end."""
    if _media_type(response) in ENDLESS:
        body = b""
        for piece in response.iter_content(None):
            body += piece
            if len(body) > MAX_STREAM_BYTES or b"\n" in body:
                break
        response._content, response._content_consumed = body, True
        response.close()
    else:
        assert response.content is not None


def _media_type(response: requests.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0]


async def _main(examples: int, number: int) -> CheckResult:
    with running_postgres() as postgres:
        name = create_database_from_airflow_template(postgres)
        try:
            database_url = postgres.url(name)
            await install_journal(database_url, "public", lock_timeout=5, attempts=1)
            async with serve_target(database_url) as url:
                return await asyncio.to_thread(check, url, examples, number)
        finally:
            drop_database(postgres, name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    checked = asyncio.run(_main(options.examples, options.seed))
    sys.stderr.write("".join(f"{miss}\n\n" for miss in checked.misses))
    sys.stdout.write(json.dumps(checked._asdict()) + "\n")
    sys.exit(1 if checked.misses else 0)
