"""Permissions under Airflow's auth manager of Flask AppBuilder, where single DAGs have permissions, too."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import httpx
import pytest

from matrix.fab_airflow import ROLES, FabAirflow, running_fab
from stream_server.auth import readable_dags as readable
from stream_server.auth.airflow_api import create_shared_client
from stream_server.auth.airflow_authorizer import AirflowAuthorizer
from stream_server.auth.authorizer import Caller
from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.domain.run_state import RunKey
from stream_server.hub.filters import Resource
from support.airflow_callers import bearer_header, make_token
from support.human_forms import OPTIONS, Callers, HumanForms
from support.open_streams import FORBIDDEN, OUT, OpenStreams, ends_within, follow_all_runs
from support.permission_comparison import SECONDS, Headers, ServerAccess, differs, query_both
from support.streams import sse
from support.waiting import eventually_async

FOR_ALL, FOR_GUESTS = "for_all", "for_guests"
PRESET = ("admin", "op", "user", "viewer", "public")
GUESTS = tuple(role.replace(" ", "_") for role in ROLES)

WAYS = 23
"""Number of ways to request a run, existing or missing."""


@pytest.fixture(scope="module")
def fab() -> Iterator[FabAirflow]:
    with running_fab() as fab:
        yield fab


@pytest.fixture(scope="module")
def rest(fab: FabAirflow) -> Iterator[AirflowRestClient]:
    with fab.stack.rest_client() as rest:
        yield rest


@pytest.fixture(scope="module")
def auth_server(fab: FabAirflow) -> Iterator[StreamServerProcess]:
    """A server that checks permissions at Airflow, and often."""
    server = fab.stack.add_server(options=["--auth", "airflow", "--auth-cache", "1s"])
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def finished_runs(rest: AirflowRestClient) -> dict[str, RunKey]:
    """A finished run of each DAG."""
    keys = {dag_id: RunKey(dag_id, rest.trigger_run(dag_id)) for dag_id in (FOR_ALL, FOR_GUESTS)}
    assert [rest.wait_until_finished(*key) for key in keys.values()] == ["success", "success"]
    return keys


@pytest.fixture(scope="module")
def queued_run(rest: AirflowRestClient) -> RunKey:
    """A run that never starts."""
    body = {"logical_date": None, "run_after": "2099-01-01T00:00:00Z", "dag_run_id": "waiting"}
    assert rest.request("POST", f"/dags/{FOR_GUESTS}/dagRuns", json=body).is_success
    return RunKey(FOR_GUESTS, "waiting")


def callers(fab: FabAirflow) -> dict[str, Headers]:
    deleted, logged_out = fab.token("deleted"), fab.token("logged_out")
    fab.delete_user("deleted")
    logout = f"{fab.url}/api/v2/auth/logout"
    assert httpx.get(logout, headers=bearer_header(logged_out), timeout=SECONDS).status_code == 307
    return {
        **{user: bearer_header(fab.token(user)) for user in (*PRESET, *GUESTS)},
        "guest by cookie": fab.cookies("guest"),
        "by another session": {"Cookie": "session=made-up"},
        "anonymous": {},
        "deleted": bearer_header(deleted),
        "logged out": bearer_header(logged_out),
        "unknown user": bearer_header(make_token("987654", None)),
        "of another auth manager": bearer_header(make_token("admin", "admin")),
        "expired": bearer_header(make_token("1", None, lifetime=-60)),
        "forged": bearer_header(make_token("1", None, secret="another-secret" * 6)),
    }


async def test_every_caller_sees_what_airflow_shows_them(
    fab: FabAirflow, auth_server: StreamServerProcess, finished_runs: dict[str, RunKey]
) -> None:
    deviations, compared = [], 0
    for name, headers in callers(fab).items():
        for key in finished_runs.values() if name in {"viewer", *GUESTS} else [finished_runs[FOR_GUESTS]]:
            async with query_both(fab.url, auth_server.url, headers, key) as pairs:
                for way, expected, actual in pairs:
                    compared += 1
                    if differs(way.split()[0], expected, actual, is_anonymous="Authorization" not in headers):
                        deviations.append((name, key.dag_id, way, expected, actual))
    assert deviations == []
    assert compared == (len(PRESET) + len(GUESTS) + 9 + 1 + len(GUESTS)) * WAYS


@pytest.mark.parametrize(
    ("user", "status", "values"),
    [
        ("admin", 200, True),
        ("user", 200, True),
        ("viewer", 403, None),
        ("guest", 403, None),
        ("triggering_guest", 200, True),
    ],
)
async def test_a_trigger_returns_what_the_caller_can_read(
    fab: FabAirflow, auth_server: StreamServerProcess, user: str, status: int, *, values: bool | None
) -> None:
    ours = ServerAccess(auth_server.url, bearer_header(fab.token(user)))
    response = await ours.trigger(FOR_GUESTS)
    await ours.close()
    assert (response.status, response.values) == (status, values)


async def test_requests_for_input_are_read_and_answered_with_the_rights_of_the_caller(
    fab: FabAirflow, auth_server: StreamServerProcess, rest: AirflowRestClient
) -> None:
    callers = Callers(*map(fab.token, ("admin", "op", "viewer")))
    forms = HumanForms(auth_server.url, rest, callers)
    frames = await forms.run()
    assert (frames[-1]["type"], frames[-1]["state"]) == ("end", "success"), frames[-10:]
    answered = [frame for frame in frames if frame["type"] == "input_answered" and "expired" not in frame]
    # Each instance once, and the second try of `again`.
    assert len(answered) == len(OPTIONS) + 1
    assert all(frame["by"] == {"id": "1", "name": "admin"} for frame in answered)

    for user, can_read in {"viewer": True, "without_input": False}.items():
        async with sse(auth_server.url, forms.key, headers=bearer_header(fab.token(user))) as events:
            requests = [frame async for frame in events if frame["type"] == "input"]
        assert {frame["task_id"] for frame in requests} == {"several", "each", "assigned", "expiring", "again"}
        assert all(("subject" in frame, "withheld" in frame) == (can_read, not can_read) for frame in requests)


async def test_streams_of_many_runs_contain_the_dags_that_name_the_caller(
    fab: FabAirflow, auth_server: StreamServerProcess, rest: AirflowRestClient
) -> None:
    async with follow_all_runs(
        auth_server.url, {user: bearer_header(fab.token(user)) for user in ("guest", "viewer")}
    ) as dag_ids:
        for dag_id in (FOR_ALL, FOR_GUESTS):
            run_id = await asyncio.to_thread(rest.trigger_run, dag_id)
            await asyncio.to_thread(rest.wait_until_finished, dag_id, run_id)
        await eventually_async(
            lambda: FOR_GUESTS in dag_ids["guest"] and dag_ids["viewer"] == {FOR_ALL, FOR_GUESTS},
            SECONDS,
            "both receive what they can read",
        )
    assert dag_ids["guest"] == {FOR_GUESTS}


async def test_a_logout_ends_all_streams(fab: FabAirflow, auth_server: StreamServerProcess, queued_run: RunKey) -> None:
    headers = bearer_header(fab.token("logged_out"))
    async with (
        OpenStreams(auth_server.url, headers, queued_run).open_all() as tasks,
        httpx.AsyncClient(timeout=SECONDS) as client,
    ):
        assert (await client.get(f"{fab.url}/api/v2/auth/logout", headers=headers)).status_code == 307
        assert await ends_within(tasks, SECONDS) == OUT


async def test_a_changed_role_changes_what_the_caller_sees(
    fab: FabAirflow, auth_server: StreamServerProcess, queued_run: RunKey
) -> None:
    headers = bearer_header(fab.token("role_changed"))
    async with OpenStreams(auth_server.url, headers, queued_run).open_all() as tasks:
        await asyncio.to_thread(fab.set_role, "role_changed", "guest without XComs")
        assert await ends_within(tasks[:6], SECONDS) == [4007, 4007, 4007, 4007, 503, 0]
        assert not any(task.done() for task in tasks[6:])
    async with OpenStreams(auth_server.url, headers, queued_run).open_all() as tasks:
        await asyncio.to_thread(fab.set_role, "role_changed", "Public")
        assert await ends_within(tasks, SECONDS) == FORBIDDEN


async def test_a_lost_xcom_permission_is_detected_without_look_ups_of_single_dags(
    fab: FabAirflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readable, "MAX_DIRECT_REQUESTS", 0)
    monkeypatch.setattr(readable, "MAX_RENEWAL_FACTOR", math.inf)
    runs, output = Resource(FOR_GUESTS), Resource(FOR_GUESTS, output=True)
    async with create_shared_client(fab.url, SECONDS) as client:
        authorizer = AirflowAuthorizer(client, good_for=1, grace=SECONDS)
        dags = authorizer.readable_dags(Caller.from_token(fab.token("xcoms_revoked")))
        assert await dags.filter_readable({runs, output, Resource(FOR_ALL)}) == {runs, output}
        await asyncio.to_thread(fab.set_role, "xcoms_revoked", "guest without XComs")
        await eventually_async(lambda: dags.may_read(output) is False, SECONDS, "output is no longer readable")
        assert await dags.filter_readable({runs, output}) == {runs}
        await authorizer.close()


async def test_a_deleted_user_loses_all_streams(
    fab: FabAirflow, auth_server: StreamServerProcess, queued_run: RunKey
) -> None:
    async with OpenStreams(auth_server.url, bearer_header(fab.token("deleted_later")), queued_run).open_all() as tasks:
        await asyncio.to_thread(fab.delete_user, "deleted_later")
        assert await ends_within(tasks, SECONDS) == OUT
