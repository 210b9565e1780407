"""Streams of real runs of a real Airflow."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from operator import itemgetter
from typing import Any

import asyncpg
import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from stream_server.protocol.cursor import ResumeToken
from support.streams import Frame, sse, states, types, websocket

RUN_SECONDS = 60.0
"""Deadline of anything that waits for a run."""

ANSWER = {"question": "Why is the sky blue?", "answer": "Air scatters blue light more than red."}


async def trigger(airflow: AirflowRestClient, dag_id: str, **conf: Any) -> RunKey:
    return RunKey(dag_id, await asyncio.to_thread(airflow.trigger_run, dag_id, conf))


async def frames_over_sse(stack: DemoStack, key: RunKey, query: str = "") -> list[Frame]:
    async with sse(stack.server_url, key, query, timeout=RUN_SECONDS) as events:
        return await events.rest(RUN_SECONDS)


async def frames_over_websocket(stack: DemoStack, key: RunKey, query: str = "") -> list[Frame]:
    async with websocket(stack.server_url, key, query) as connection:
        return [json.loads(text) async for text in connection]


async def committed(stack: DemoStack, key: RunKey, after: str) -> list[tuple[Any, ...]]:
    """Return the transitions of a run after a cursor, from the journal."""
    connection = await asyncpg.connect(stack.database_url)
    try:
        rows = await connection.fetch(
            "SELECT id, kind, task_id, map_index, try_number, state FROM stream_server.journal"
            " WHERE dag_id = $1 AND run_id = $2 AND kind IN ('task', 'run')"
            " AND NOT pg_visible_in_snapshot(txid, $3::text::pg_snapshot) ORDER BY id",
            *key,
            ResumeToken.parse(after).position.snapshot,
        )
    finally:
        await connection.close()
    return [tuple(row) for row in rows]


def transitions_in(frames: list[Frame]) -> list[tuple[Any, ...]]:
    return [
        tuple(frame.get(name) for name in ("seq", "type", "task_id", "map_index", "try_number", "state"))
        for frame in frames
        if frame["type"] in ("task", "run")
    ]


def duplicates(frames: list[Frame]) -> list[tuple[Any, ...]]:
    identities = [(frame["type"], frame["seq"]) for frame in frames if "seq" in frame]
    return [identity for identity in set(identities) if identities.count(identity) > 1]


@pytest.mark.core
async def test_the_result_arrives_long_before_the_teardown_ends(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key = await trigger(airflow, "chat_answer", teardown_seconds=6)
    waiting = asyncio.create_task(asyncio.to_thread(airflow.wait_at_airflow, *key, 1.0))

    frames = await frames_over_sse(stack, key)
    answered = time.monotonic()
    assert not waiting.done()
    native = await asyncio.wait_for(waiting, RUN_SECONDS)
    ahead = time.monotonic() - answered

    assert frames[-2]["results"] == {"answer": ANSWER}
    assert (frames[-1]["type"], frames[-1]["state"], frames[-1]["outcome"]) == ("end", "running", "result")
    assert native["state"] == "success"
    # The teardown starts after the result and takes six seconds on any machine.
    assert ahead > 5


async def test_a_failure_arrives_before_the_teardown_ends(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key = await trigger(airflow, "fail_before_teardown", teardown_seconds=5)
    over_sse, over_websocket = await asyncio.gather(frames_over_sse(stack, key), frames_over_websocket(stack, key))
    state = (await asyncio.to_thread(airflow.get_run, *key))["state"]

    for frames in (over_sse, over_websocket):
        failure, end = frames[-2:]
        assert (failure["type"], failure["reason"]) == ("failure", "task_failed")
        assert (failure["task_id"], failure["state"]) == ("think", "failed")
        assert (end["state"], end["outcome"]) == ("running", "failure")
    assert state == "running"


CONFS: dict[str, dict[str, Any]] = {
    "chat_answer": {"teardown_seconds": 0},
    "fail_before_teardown": {"teardown_seconds": 0},
    "mapped_squares": {"numbers": [3, 1, 2]},
    "native_result": {"question": "Why?", "archive_seconds": 0},
}
WatchedRun = tuple[RunKey, tuple[list[Frame], list[Frame]]]


@pytest.fixture(scope="module")
def watched_runs(stack: DemoStack, airflow: AirflowRestClient) -> dict[str, WatchedRun]:
    """Runs at the same time, with the frames over SSE and over WebSocket from when they were triggered."""

    async def watch(dag_id: str) -> WatchedRun:
        key = await trigger(airflow, dag_id, **CONFS[dag_id])
        return key, await asyncio.gather(
            frames_over_sse(stack, key, "?until=run"), frames_over_websocket(stack, key, "?until=run")
        )

    async def watch_all() -> dict[str, WatchedRun]:
        return dict(zip(CONFS, await asyncio.gather(*map(watch, CONFS)), strict=True))

    return asyncio.run(watch_all())


@pytest.mark.core
@pytest.mark.parametrize(
    ("dag_id", "outcome", "results"),
    [
        ("chat_answer", "result", {"answer": ANSWER}),
        ("fail_before_teardown", "failure", None),
        ("mapped_squares", "result", {"square": [9, 1, 4]}),
        ("native_result", "result", {"answer": "You asked: Why?"}),
    ],
)
async def test_the_frames_of_a_run_are_its_committed_transitions(
    stack: DemoStack, watched_runs: dict[str, WatchedRun], dag_id: str, outcome: str, results: Any
) -> None:
    key, everything = watched_runs[dag_id]
    for frames in everything:
        assert duplicates(frames) == []
        assert (frames[-1]["type"], frames[-1]["outcome"]) == ("end", outcome)
        assert [frame["results"] for frame in frames if frame["type"] == "result"] == ([results] if results else [])
    # SSE has the cursor in the event's id, WebSocket in the frame.
    over_websocket = everything[1]
    cursor = over_websocket[0]["cursor"]
    # A late commit is sent late, whatever its id; transitions of one instance are in order.
    assert sorted(transitions_in(over_websocket), key=itemgetter(0)) == await committed(stack, key, cursor)
    numbers: dict[tuple[Any, ...], list[int]] = {}
    for seq, kind, task_id, map_index, *_ in transitions_in(over_websocket):
        numbers.setdefault((kind, task_id, map_index), []).append(seq)
    assert all(seqs == sorted(seqs) for seqs in numbers.values())
    over_sse = everything[0]
    shared = transitions_in(over_sse)[-len(transitions_in(over_websocket)) :]
    assert shared == transitions_in(over_websocket)[-len(shared) :]


@pytest.mark.core
async def test_a_mapped_task_is_expanded_and_its_results_are_collected(
    stack: DemoStack, airflow: AirflowRestClient
) -> None:
    key = await trigger(airflow, "mapped_squares", numbers=[1, 2, 3, 4])
    frames = await frames_over_sse(stack, key)
    assert frames[-2]["results"] == {"square": [1, 4, 9, 16]}
    successes = {
        frame["map_index"]
        for frame in frames
        if frame["type"] == "task" and frame["task_id"] == "square" and frame["state"] == "running"
    }
    assert successes == {0, 1, 2, 3}


async def test_a_finished_run_sends_its_result_at_once(stack: DemoStack, watched_runs: dict[str, WatchedRun]) -> None:
    key, _ = watched_runs["chat_answer"]
    assert types(await frames_over_sse(stack, key)) == ["snapshot", "result", "end"]
    assert (await frames_over_sse(stack, key, "?result=think"))[1]["results"] == {"think": ANSWER["answer"]}


@pytest.mark.core
async def test_a_cleared_run_sends_a_new_result(stack: DemoStack, airflow: AirflowRestClient) -> None:
    key = await trigger(airflow, "native_result", question="Again?", archive_seconds=0)
    await asyncio.to_thread(airflow.wait_until_finished, *key)

    async with sse(stack.server_url, key, "?result=answer&until=run", timeout=RUN_SECONDS) as events:
        assert types(await events.rest(RUN_SECONDS))[-1] == "end"
    cleared = await asyncio.to_thread(
        airflow.request, "POST", f"/dags/native_result/dagRuns/{key.run_id}/clear", json={"dry_run": False}
    )
    assert cleared.status_code == 200, cleared.text
    frames = await frames_over_sse(stack, key, "?result=answer&until=run")
    assert states(frames, "answer")[-1] == "success"
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": "You asked: Again?"}]


async def test_an_unknown_run_is_404(stack: DemoStack) -> None:
    async with httpx.AsyncClient(base_url=stack.server_url) as client:
        answer = await client.get("/api/v2/dags/chat_answer/dagRuns/nothing/stream")
    assert (answer.status_code, answer.json()["title"]) == (404, "Run not found")


def command(stack: DemoStack, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream_server", *arguments, "--url", stack.server_url],
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
        env={**environment, "PATH": "/usr/bin:/bin"},
    )


def run_command(stack: DemoStack, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return command(stack, "run", *arguments, "--airflow-url", stack.airflow_url, **environment)


def test_run_prints_the_result_alone(stack: DemoStack, token: str) -> None:
    done = run_command(stack, "chat_answer", "--conf", '{"teardown_seconds": 0}', STREAM_SERVER_TOKEN=token)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ANSWER
    assert "think: running" in done.stderr
    text = run_command(
        stack,
        *("chat_answer", "--conf", '{"teardown_seconds": 0}', "--result", "think", "--raw"),
        *("--username", "admin"),
        STREAM_SERVER_PASSWORD=stack.credentials.password,
    )
    assert (text.returncode, text.stdout) == (0, ANSWER["answer"] + "\n"), text.stderr


def test_run_reports_failure_timeout_and_bad_usage_by_exit_code(stack: DemoStack, token: str) -> None:
    failed = run_command(stack, "fail_before_teardown", "--conf", '{"teardown_seconds": 0}', STREAM_SERVER_TOKEN=token)
    assert (failed.returncode, failed.stdout) == (1, ""), failed.stderr
    assert "failure: task_failed in think" in failed.stderr
    late = run_command(stack, "chat_answer", "--timeout", "300ms", STREAM_SERVER_TOKEN=token)
    assert (late.returncode, late.stdout) == (3, ""), late.stderr
    unknown = run_command(stack, "no_such_dag", STREAM_SERVER_TOKEN=token)
    assert unknown.returncode == 64
    assert "Airflow answered 404" in unknown.stderr
    refused = run_command(stack, "chat_answer", STREAM_SERVER_TOKEN="wrong")
    assert refused.returncode == 64
    assert "Airflow answered 403" in refused.stderr
    assert "wrong" not in refused.stderr
    for wrong in (["--conf", "[1]"], ["--conf", "{"], ["--until", "never"], ["--bogus"]):
        assert run_command(stack, "chat_answer", *wrong).returncode == 64


def test_tail_writes_frames_as_lines_when_piped(stack: DemoStack, airflow: AirflowRestClient) -> None:
    run_id = airflow.trigger_run("chat_answer", {"teardown_seconds": 0})
    done = command(stack, "tail", "chat_answer", run_id)
    assert done.returncode == 0, done.stderr
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert types(frames)[0] == "snapshot"
    assert (frames[-1]["type"], frames[-1]["state"]) == ("end", "success")
    missing = command(stack, "tail", "chat_answer", "no-such-run")
    assert (missing.returncode, missing.stdout) == (64, "")
    assert "has no run 'no-such-run'" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_the_client_continues_after_a_server_restart(stack: DemoStack, airflow: AirflowRestClient) -> None:
    run_id = airflow.trigger_run("chat_answer", {"teardown_seconds": 3})
    with subprocess.Popen(
        [sys.executable, "-m", "stream_server", "tail", "chat_answer", run_id, "--url", stack.server_url],
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["type"] == "snapshot"
        stack.server.restart()
        frames = [json.loads(line) for line in following.stdout]
        assert following.wait(RUN_SECONDS) == 0
    assert "resumed" in types(frames)
    assert duplicates(frames) == []
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": ANSWER}]
    assert (frames[-1]["type"], frames[-1]["state"]) == ("end", "success")
