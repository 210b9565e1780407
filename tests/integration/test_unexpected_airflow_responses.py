"""An Airflow that responds 200 with a body that its API never sends."""

from __future__ import annotations

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from stream_server.auth import airflow_authorizer
from stream_server.auth.airflow_api import MAYBE_CREATED, AirflowApi
from stream_server.auth.airflow_authorizer import AirflowAuthorizer
from stream_server.auth.airflow_bodies import DagPage
from stream_server.auth.authorizer import Caller
from stream_server.cli.doctor.report import Level
from stream_server.cli.doctor.runner import DoctorTargets, run_checks
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowNotResponding, PermissionUnknown
from support.airflow_sql import AirflowSql
from support.airflow_stub import AirflowStub, ReceivedRequest, malformed_bodies
from support.airflow_stub_fixtures import WAIT, run_path
from support.server import RunningServer
from support.stub_callers import CallerPermissions, client_for

TOKENS = malformed_bodies(access_token=[None, 5, "", ["secret"], "a\ud800"])
RUNS = malformed_bodies(dag_run_id=[None, 5, "", {}, "a\0", "a\ud800"])
STATES = malformed_bodies(state=[None, 5, "", ["failed"], "a\ud800"])
NO_RUN_LISTS = malformed_bodies(dag_runs=[None, 5, "a", {}])
NO_XCOM_LISTS = malformed_bodies(xcom_entries=[None, 5, "a", {}])


def respond_with(stub: AirflowStub, answer: Response, method: str, path: str) -> None:
    """Make the stub send this body to requests with this method and path suffix."""

    async def respond(received: ReceivedRequest) -> Response | None:
        return answer if received.method == method and received.target.partition("?")[0].endswith(path) else None

    stub.instead = respond


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["title"]


async def test_a_malformed_trigger_response_is_502_and_the_run_may_exist(
    caller: httpx.AsyncClient, stub: AirflowStub
) -> None:
    for malformed in RUNS:
        respond_with(stub, malformed, "POST", "/dagRuns")
        answer = await caller.post(WAIT, json={})
        assert error_of(answer) == (502, "Airflow does not answer"), malformed.body[:40]
        assert answer.json()["detail"].endswith(MAYBE_CREATED)


@pytest.mark.parametrize("method", ["GET", "PATCH"])
async def test_a_malformed_cancellation_response_is_502(
    caller: httpx.AsyncClient, stub: AirflowStub, airflow: AirflowSql, method: str
) -> None:
    await caller.post(f"{WAIT}&timeout=0", json={})
    for malformed in STATES:
        respond_with(stub, malformed, method, "/manual__1")
        assert error_of(await caller.post(f"{run_path('manual__1')}/cancel")) == (502, "Airflow does not answer"), (
            malformed.body
        )


async def test_a_malformed_login_response_is_502_without_its_text(
    trigger_server: RunningServer, stub: AirflowStub
) -> None:
    for malformed in TOKENS:
        respond_with(stub, malformed, "POST", "/auth/token")
        async with httpx.AsyncClient(base_url=trigger_server.url) as client:
            answer = await client.post("/api/v2/stream/session", json={"username": "ada", "password": "right"})
        assert error_of(answer) == (502, "Airflow does not answer"), malformed.body[:40]
        assert "set-cookie" not in answer.headers
        assert "secret" not in answer.text


@pytest.mark.parametrize(("rights", "bodies"), [("runs", RUNS), ("xcoms", NO_XCOM_LISTS)], ids=["runs", "xcoms"])
async def test_a_malformed_response_leaves_a_run_permission_unknown(
    auth_server: RunningServer, key: RunKey, ada: CallerPermissions, rights: str, bodies: list[Response]
) -> None:
    async with client_for(auth_server, ada) as client:
        for malformed in bodies:
            setattr(ada, rights, malformed)
            answer = await client.get(f"/api/v2/dags/chat/dagRuns/{key.run_id}/result?timeout=0")
            assert error_of(answer) == (503, "Permission unknown"), malformed.body[:40]
            assert answer.headers["retry-after"] == "2"


@pytest.mark.parametrize("path", ["/api/v2/stream", "/api/v2/stream/runs", "/api/v2/stream/dags?tag=nightly"])
async def test_a_malformed_response_leaves_the_permission_for_all_runs_unknown(
    auth_server: RunningServer, ada: CallerPermissions, path: str
) -> None:
    async with client_for(auth_server, ada) as client:
        for malformed in NO_RUN_LISTS:
            ada.dags = malformed
            assert error_of(await client.get(path)) == (503, "Permission unknown"), malformed.body[:40]


async def test_a_malformed_list_of_dags_counts_as_no_answer(stub: AirflowStub) -> None:
    async with AirflowApi.open(stub.url, None) as airflow:
        for malformed in malformed_bodies(dags=[None, 5, {}, [{}], [5], [None], [{"dag_id": 5}], [{"dag_id": None}]]):
            respond_with(stub, malformed, "GET", "/api/v2/dags")
            with pytest.raises(AirflowNotResponding, match="Airflow answered 200 to GET /api/v2/dags with"):
                await airflow.get(DagPage, "/api/v2/dags?limit=1", 10.0)


async def test_a_list_of_dags_without_end_counts_as_no_answer(
    stub: AirflowStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(airflow_authorizer, "MAX_DAG_PAGES", 5)
    received: list[str] = []

    async def respond(request: ReceivedRequest) -> Response:
        received.append(request.target)
        return JSONResponse({"dags": [{"dag_id": f"dag {len(received)}"}]})

    stub.instead = respond
    async with httpx.AsyncClient(base_url=stub.url) as client:
        authorizer = AirflowAuthorizer(client, good_for=1, grace=1)
        with pytest.raises(PermissionUnknown, match="not ended"):
            await authorizer._list_dags(Caller({}))
    assert len(received) == 5


async def test_a_malformed_version_is_not_that_of_airflow(stub: AirflowStub) -> None:
    for malformed in malformed_bodies(version=[None, 5, {}]):
        respond_with(stub, malformed, "GET", "/api/v2/version")
        finding = (await run_checks(DoctorTargets(airflow_url=stub.url))).get("airflow-api")
        assert finding is not None
        assert (finding.level, "is not Airflow's API" in finding.found) == (Level.PROBLEM, True), malformed.body[:40]
