"""Who may see what under Airflow's auth manager of Flask AppBuilder, where rights are those of single DAGs, too."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import httpx
import pytest

from matrix.fab_airflow import ROLES, Fab, running_fab
from stream_server.auth import readable_dags as readable
from stream_server.auth.airflow_api import create_shared_client
from stream_server.auth.airflow_authorizer import AirflowAuthorizer
from stream_server.auth.authorizer import Caller
from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.domain.run_state import RunKey
from stream_server.hub.firehose import Resource
from support.airflow_callers import bearer, token
from support.open_streams import FORBIDDEN, OUT, Streams, hearing, within
from support.permission_comparison import SECONDS, Headers, Ours, differs, said_and_told
from support.waiting import eventually_async

FOR_ALL, FOR_GUESTS = "for_all", "for_guests"
PRESET = ("admin", "op", "user", "viewer", "public")
GUESTS = tuple(role.replace(" ", "_") for role in ROLES)

WAYS = 23
"""Ways to ask about one run, and about one that there is not."""


@pytest.fixture(scope="module")
def fab() -> Iterator[Fab]:
    with running_fab() as fab:
        yield fab


@pytest.fixture(scope="module")
def rest(fab: Fab) -> Iterator[AirflowRestClient]:
    with fab.stack.rest_client() as rest:
        yield rest


@pytest.fixture(scope="module")
def guarded(fab: Fab) -> Iterator[StreamServerProcess]:
    """A server that asks Airflow, and often."""
    server = fab.stack.add_server(options=["--auth", "airflow", "--auth-cache", "1s"])
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def over(rest: AirflowRestClient) -> dict[str, RunKey]:
    """A run of each DAG that has answered."""
    keys = {dag_id: RunKey(dag_id, rest.trigger_run(dag_id)) for dag_id in (FOR_ALL, FOR_GUESTS)}
    assert [rest.wait_until_finished(*key) for key in keys.values()] == ["success", "success"]
    return keys


@pytest.fixture(scope="module")
def waiting(rest: AirflowRestClient) -> RunKey:
    """A run that never begins."""
    body = {"logical_date": None, "run_after": "2099-01-01T00:00:00Z", "dag_run_id": "waiting"}
    assert rest.request("POST", f"/dags/{FOR_GUESTS}/dagRuns", json=body).is_success
    return RunKey(FOR_GUESTS, "waiting")


def callers(fab: Fab) -> dict[str, Headers]:
    gone, leaver = fab.token("gone"), fab.token("leaver")
    fab.delete("gone")
    logout = f"{fab.url}/api/v2/auth/logout"
    assert httpx.get(logout, headers=bearer(leaver), timeout=SECONDS).status_code == 307
    return {
        **{user: bearer(fab.token(user)) for user in (*PRESET, *GUESTS)},
        "guest by cookie": fab.cookies("guest"),
        "by another session": {"Cookie": "session=made-up"},
        "nobody": {},
        "deleted": bearer(gone),
        "logged out": bearer(leaver),
        "who never was": bearer(token("987654", None)),
        "of another auth manager": bearer(token("admin", "admin")),
        "expired": bearer(token("1", None, lifetime=-60)),
        "forged": bearer(token("1", None, secret="another-secret" * 6)),
    }


async def test_everybody_is_told_what_airflow_would_tell_him(
    fab: Fab, guarded: StreamServerProcess, over: dict[str, RunKey]
) -> None:
    deviations, asked = [], 0
    for name, headers in callers(fab).items():
        for key in over.values() if name in {"viewer", *GUESTS} else [over[FOR_GUESTS]]:
            async with said_and_told(fab.url, guarded.url, headers, key) as pairs:
                for way, said, told in pairs:
                    asked += 1
                    if differs(way.split()[0], said, told, introduced="Authorization" not in headers):
                        deviations.append((name, key.dag_id, way, said, told))
    assert deviations == []
    assert asked == (len(PRESET) + len(GUESTS) + 9 + 1 + len(GUESTS)) * WAYS


@pytest.mark.parametrize(
    ("user", "status", "values"),
    [
        ("admin", 200, True),
        ("user", 200, True),
        ("viewer", 403, None),
        ("guest", 403, None),
        ("guest_who_triggers", 200, True),
    ],
)
async def test_who_triggers_is_told_what_he_may_read(
    fab: Fab, guarded: StreamServerProcess, user: str, status: int, *, values: bool | None
) -> None:
    ours = Ours(guarded.url, bearer(fab.token(user)))
    told = await ours.trigger(FOR_GUESTS)
    await ours.close()
    assert (told.status, told.values) == (status, values)


async def test_streams_of_many_runs_tell_of_the_dags_that_name_the_caller(
    fab: Fab, guarded: StreamServerProcess, rest: AirflowRestClient
) -> None:
    async with hearing(guarded.url, {user: bearer(fab.token(user)) for user in ("guest", "viewer")}) as heard:
        for dag_id in (FOR_ALL, FOR_GUESTS):
            run_id = await asyncio.to_thread(rest.trigger_run, dag_id)
            await asyncio.to_thread(rest.wait_until_finished, dag_id, run_id)
        await eventually_async(
            lambda: FOR_GUESTS in heard["guest"] and heard["viewer"] == {FOR_ALL, FOR_GUESTS},
            SECONDS,
            "both hear what they may read",
        )
    assert heard["guest"] == {FOR_GUESTS}


async def test_who_logs_out_is_out_everywhere(fab: Fab, guarded: StreamServerProcess, waiting: RunKey) -> None:
    headers = bearer(fab.token("leaver"))
    async with Streams(guarded.url, headers, waiting).opened() as tasks, httpx.AsyncClient(timeout=SECONDS) as client:
        assert (await client.get(f"{fab.url}/api/v2/auth/logout", headers=headers)).status_code == 307
        assert await within(tasks, SECONDS) == OUT


async def test_who_has_another_role_sees_what_that_may_see(
    fab: Fab, guarded: StreamServerProcess, waiting: RunKey
) -> None:
    headers = bearer(fab.token("loser"))
    async with Streams(guarded.url, headers, waiting).opened() as tasks:
        await asyncio.to_thread(fab.give, "loser", "guest without XComs")
        assert await within(tasks[:6], SECONDS) == [4007, 4007, 4007, 4007, 503, 0]
        assert not any(task.done() for task in tasks[6:])
    async with Streams(guarded.url, headers, waiting).opened() as tasks:
        await asyncio.to_thread(fab.give, "loser", "Public")
        assert await within(tasks, SECONDS) == FORBIDDEN


async def test_lost_xcoms_are_noticed_where_no_dag_is_asked_for_itself(
    fab: Fab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readable, "MAX_DIRECT_REQUESTS", 0)
    monkeypatch.setattr(readable, "MAX_RENEWAL_FACTOR", math.inf)
    runs, said = Resource(FOR_GUESTS), Resource(FOR_GUESTS, output=True)
    async with create_shared_client(fab.url, SECONDS) as client:
        authorizer = AirflowAuthorizer(client, good_for=1, grace=SECONDS)
        dags = authorizer.readable_dags(Caller.from_token(fab.token("forgetter")))
        assert await dags.filter_readable({runs, said, Resource(FOR_ALL)}) == {runs, said}
        await asyncio.to_thread(fab.give, "forgetter", "guest without XComs")
        await eventually_async(lambda: dags.may_read(said) is False, SECONDS, "what tasks say is told no more")
        assert await dags.filter_readable({runs, said}) == {runs}
        await authorizer.close()


async def test_who_is_deleted_is_out_everywhere(fab: Fab, guarded: StreamServerProcess, waiting: RunKey) -> None:
    async with Streams(guarded.url, bearer(fab.token("deserter")), waiting).opened() as tasks:
        await asyncio.to_thread(fab.delete, "deserter")
        assert await within(tasks, SECONDS) == OUT
