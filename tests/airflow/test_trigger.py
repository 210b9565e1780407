"""Trigger runs of a real Airflow, and wait for their results."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.stack import DemoStack
from stream_server.domain.run_state import RunKey
from support.streams import Events, Frame, sse, states, types
from support.waiting import eventually_answered

RUN_SECONDS = 60.0

ANSWER = {"question": "Why is the sky blue?", "answer": "Air scatters blue light more than red."}


@pytest.fixture
async def caller(stack: DemoStack, token: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=stack.server_url, headers=headers, timeout=RUN_SECONDS) as client:
        yield client


@pytest.fixture(scope="module", autouse=True)
def dags(stack: DemoStack) -> None:
    """Wait until Airflow has parsed the DAGs of these tests."""
    dag_ids = ["numbered_tries", "numbered_tries_pushed_early", "failure_six_levels_up"]
    stack.airflow.wait_for_dags(dag_ids, ConsoleReporter())


def call(dag_id: str, query: str = "") -> str:
    return f"/api/v2/dags/{dag_id}/dagRuns?wait_for_completion=true&timeout=60s{query}"


def run_path(key: RunKey, what: str) -> str:
    return f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id}/{what}"


async def state_of(airflow: AirflowRestClient, key: RunKey) -> str:
    return str((await asyncio.to_thread(airflow.get_run, *key))["state"])


def at(frame: Frame) -> datetime:
    """Return the time at which the row of a frame was written."""
    return datetime.fromisoformat(frame["at"].replace("Z", "+00:00"))


async def test_one_call_triggers_and_returns_the_result_before_the_teardown_ends(
    caller: httpx.AsyncClient, airflow: AirflowRestClient
) -> None:
    answer = await caller.post(call("chat_answer"), json={"conf": {"teardown_seconds": 5}, "note": "asked"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    key = RunKey("chat_answer", body["dag_run_id"])
    assert (body["outcome"], body["state"], body["results"]) == ("result", "running", {"answer": ANSWER})
    assert await state_of(airflow, key) == "running"
    later = await caller.get(answer.headers["content-location"])
    assert later.json()["results"] == {"answer": ANSWER}
    run = await asyncio.to_thread(airflow.get_run, *key)
    assert (run["note"], run["triggering_user_name"]) == ("asked", "admin"), "triggered with the caller's own rights"


async def test_the_result_endpoint_waits_for_a_run(caller: httpx.AsyncClient, airflow: AirflowRestClient) -> None:
    key = RunKey("chat_answer", await asyncio.to_thread(airflow.trigger_run, "chat_answer", {"teardown_seconds": 0}))
    pending = await caller.get(run_path(key, "result?timeout=0"))
    assert (pending.status_code, pending.json()["outcome"]) == (202, "pending")
    answer = await caller.get(pending.headers["location"].replace("timeout=0", "timeout=60s&result=think"))
    assert answer.json()["results"] == {"think": ANSWER["answer"]}


async def test_the_bare_value_is_returned_after_the_success_of_its_task(
    caller: httpx.AsyncClient, airflow: AirflowRestClient
) -> None:
    body = {"conf": {"teardown_seconds": 0}}
    answer = await caller.post(call("chat_answer", "&unwrap=true&confirm=success"), json=body)
    assert (answer.status_code, answer.json()) == (200, ANSWER)
    run_id = answer.headers["location"].rpartition("/")[2].replace("%3A", ":").replace("%2B", "+")
    assert (await asyncio.to_thread(airflow.get_task_states, "chat_answer", run_id))["answer"] == ["success"]
    failed = await caller.post(call("fail_before_teardown", "&unwrap=true&fail_status=424"), json=body)
    assert (failed.status_code, failed.json()["outcome"]) == (424, "failure")


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson"])
async def test_one_call_triggers_and_streams_from_the_first_row_on(
    stack: DemoStack, caller: httpx.AsyncClient, accept: str
) -> None:
    body = {"conf": {"numbers": [3, 1, 2]}}
    async with caller.stream(
        "POST", call("mapped_squares", "&until=run"), json=body, headers={"Accept": accept}
    ) as response:
        assert response.status_code == 200
        if accept == "text/event-stream":
            frames = await Events(response, RUN_SECONDS).rest(RUN_SECONDS)
        else:
            frames = [json.loads(line) async for line in response.aiter_lines()]
    key = RunKey("mapped_squares", frames[0]["run_id"])
    assert (frames[0]["type"], frames[0]["tasks"]) == ("snapshot", [])
    assert [frame["state"] for frame in frames if frame["type"] == "run"] == ["queued", "running", "success"]
    assert states(frames, "numbers")[-4:] == ["scheduled", "queued", "running", "success"]
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"square": [9, 1, 4]}]
    assert (frames[-1]["type"], frames[-1]["outcome"]) == ("end", "result")
    async with sse(stack.server_url, key) as events:
        assert types(await events.rest()) == ["snapshot", "result", "end"]


async def test_a_failure_is_reported_seconds_before_the_run_ends(
    caller: httpx.AsyncClient, airflow: AirflowRestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"conf": {"teardown_seconds": 5}}
    async with caller.stream(
        "POST", call("fail_before_teardown"), json=body, headers={"Accept": "text/event-stream"}
    ) as response:
        frames = await Events(response, RUN_SECONDS).rest(RUN_SECONDS)
    reported_at = time.monotonic()
    arrived = datetime.now(timezone.utc)
    failure, end = frames[-2:]
    assert (failure["type"], end["type"], end["state"]) == ("failure", "end", "running")
    key = RunKey("fail_before_teardown", end["run_id"])
    assert await asyncio.to_thread(airflow.wait_until_finished, *key) == "failed"
    ahead = time.monotonic() - reported_at
    with capsys.disabled():
        print(f"\nfailure {_ms(arrived, failure):.0f} ms after its row, {ahead:.1f} s before the run's end")  # noqa: T201
    assert ahead > 4, "the teardown alone takes five seconds"


@pytest.mark.core
async def test_a_failure_six_levels_up_is_reported_before_airflow_writes_it(
    stack: DemoStack, airflow: AirflowRestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = await asyncio.to_thread(airflow.trigger_run, "failure_six_levels_up", {})
    key = RunKey("failure_six_levels_up", run_id)
    async with sse(stack.server_url, key, "?result=level_6&until=run", timeout=RUN_SECONDS) as events:
        frames = await asyncio.wait_for(events.until("failure"), RUN_SECONDS)
        arrived = datetime.now(timezone.utc)
        rest = await events.rest(RUN_SECONDS)
    failed = next(frame for frame in frames if frame["type"] == "task" and frame["state"] == "failed")
    last = [frame for frame in rest if frame["type"] == "task" and frame["task_id"] == "level_6"]
    assert [frame["state"] for frame in last] == ["upstream_failed"], "written after the failure was reported"
    assert frames[-1]["task_id"] == "fail"
    assert frames[-1]["predicted"]
    with capsys.disabled():
        ahead = (at(last[-1]) - arrived).total_seconds()
        print(f"\nfailure {_ms(arrived, failed):.0f} ms after its row, {ahead:.1f} s before level six's")  # noqa: T201


def _ms(arrived: datetime, frame: Frame) -> float:
    return (arrived - at(frame)).total_seconds() * 1000


async def test_the_stop_button_stops_a_run(caller: httpx.AsyncClient, airflow: AirflowRestClient) -> None:
    body = {"conf": {"archive_seconds": 120}}
    async with caller.stream(
        "POST", call("native_result", "&until=run&result=answer"), json=body, headers={"Accept": "text/event-stream"}
    ) as response:
        events = Events(response, RUN_SECONDS)
        frames = await asyncio.wait_for(events.until("result"), RUN_SECONDS)
        key = RunKey("native_result", frames[0]["run_id"])
        stopped = await caller.post(run_path(key, "cancel"))
        assert stopped.status_code == 200, stopped.text
        assert stopped.json()["state"] == "failed"
        rest = await events.rest()
    assert (rest[-1]["type"], rest[-1]["state"]) == ("end", "failed")
    again = await caller.post(run_path(key, "cancel"))
    assert (again.status_code, again.json()["state"]) == (200, "failed")
    unknown = await caller.post(run_path(RunKey("native_result", "nothing"), "cancel"))
    assert unknown.status_code == 404


async def test_a_finished_run_cannot_be_stopped(caller: httpx.AsyncClient, airflow: AirflowRestClient) -> None:
    key = RunKey("mapped_squares", await asyncio.to_thread(airflow.trigger_run, "mapped_squares", {"numbers": [1]}))
    assert await asyncio.to_thread(airflow.wait_until_finished, *key) == "success"
    assert (await caller.post(run_path(key, "cancel"))).json()["state"] == "success"
    assert await state_of(airflow, key) == "success"


async def test_an_empty_mapping_returns_an_empty_list(caller: httpx.AsyncClient, airflow: AirflowRestClient) -> None:
    """Airflow skips the task without dates, which identifies an empty mapping."""
    answer = await caller.post(call("mapped_squares"), json={"conf": {"numbers": []}})
    assert (answer.json()["outcome"], answer.json()["results"]) == ("result", {"square": []})
    key = RunKey("mapped_squares", answer.json()["dag_run_id"])
    assert await asyncio.to_thread(airflow.wait_until_finished, *key) == "success"
    again = await caller.get(run_path(key, "result"))
    assert again.json()["results"] == {"square": []}


async def test_a_run_without_waiting_clients_is_stopped(caller: httpx.AsyncClient, airflow: AirflowRestClient) -> None:
    body = {"conf": {"archive_seconds": 120}}
    async with caller.stream(
        "POST",
        call("native_result", "&result=archive&on_disconnect=cancel&grace=100ms"),
        json=body,
        headers={"Accept": "text/event-stream"},
    ) as response:
        key = RunKey("native_result", (await Events(response, RUN_SECONDS).next())["run_id"])

    async def failed() -> bool:
        return await state_of(airflow, key) == "failed"

    await eventually_answered(failed, within=RUN_SECONDS, what="the run is stopped")


async def test_one_idempotency_key_triggers_one_run(
    stack: DemoStack, caller: httpx.AsyncClient, airflow: AirflowRestClient
) -> None:
    replica = stack.add_server()
    await asyncio.to_thread(replica.start)
    body, key = {"conf": {"numbers": [2]}}, {"Idempotency-Key": "once-and-for-all"}
    urls = [stack.server_url, stack.server_url, replica.url]
    try:
        answers = await asyncio.gather(
            *(caller.post(f"{url}{call('mapped_squares')}", json=body, headers=key) for url in urls)
        )
    finally:
        await asyncio.to_thread(replica.stop)
    assert [answer.status_code for answer in answers] == [200, 200, 200], [answer.text for answer in answers]
    assert len({answer.json()["dag_run_id"] for answer in answers}) == 1
    assert all(answer.json()["results"] == {"square": [4]} for answer in answers)
    other = await caller.post(call("mapped_squares"), json={"conf": {"numbers": [3]}}, headers=key)
    assert (other.status_code, other.json()["title"]) == (422, "Idempotency key reused")
    run_id = answers[0].json()["dag_run_id"]
    conflict = await caller.post(call("mapped_squares"), json={"dag_run_id": run_id})
    assert (conflict.status_code, "Unique constraint violation" in conflict.json()["detail"]) == (409, True)
    attached = await caller.post(call("mapped_squares", "&if_exists=attach"), json={"dag_run_id": run_id})
    assert attached.json()["results"] == {"square": [4]}


async def test_errors_of_airflow_are_passed_on(stack: DemoStack, caller: httpx.AsyncClient) -> None:
    """Statuses and texts are Airflow's own, with and without `wait_for_completion`."""
    wrong: list[tuple[str, Any, dict[str, str], int]] = [
        ("chat_answer", {}, {"Authorization": "Bearer wrong"}, 403),
        ("chat_answer", {}, {"Authorization": ""}, 401),
        ("no_such_dag", {}, {}, 404),
        ("chat_answer", {"dag_run_id": "not/allowed"}, {}, 400),
        ("chat_answer", {"conf": {"teardown_seconds": -1}}, {}, 400),
        ("chat_answer", {"surprise": 1}, {}, 422),
    ]
    async with httpx.AsyncClient(base_url=stack.airflow_url, headers=caller.headers) as airflow:
        for dag_id, body, headers, status in wrong:
            path, whole = f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None, **body}
            native = await airflow.post(path, json=whole, headers=headers)
            passed = await caller.post(path, json=whole, headers=headers)
            ours = await caller.post(call(dag_id), json=body, headers=headers)
            assert native.status_code == passed.status_code == status, passed.text
            assert passed.content == native.content
            detail = native.json()["detail"]
            text = detail if isinstance(detail, str) else json.dumps(detail, ensure_ascii=False)[:500]
            assert ours.json()["detail"].endswith(f": {text}")
            # Airflow answers 403 to a token that it does not accept.
            is_refused = detail == "Invalid JWT token"
            assert ours.status_code == (401 if is_refused else status), ours.text
            # Each 401 has a challenge (RFC 9110 15.5.2), whether Airflow sends one or not.
            added = "Bearer" if ours.status_code == 401 else None
            challenge = native.headers.get("www-authenticate") or added
            assert ours.headers.get("www-authenticate") == challenge


async def clear_answer(airflow: AirflowRestClient, dag_id: str, run_id: str) -> None:
    clear = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["answer"], "only_failed": False}
    cleared = await asyncio.to_thread(airflow.request, "POST", f"/dags/{dag_id}/clearTaskInstances", json=clear)
    assert cleared.status_code == 200, cleared.text


async def until_success_of(task_id: str, events: Events) -> None:
    while (frame := await events.next()).get("task_id") != task_id or frame["state"] != "success":
        pass


def check_that_the_first_result_is_retracted(frames: list[Frame], reason: str) -> None:
    """Check the frames after the first result, which `answer` has returned in its first try."""
    kinds = types(frames)
    reset = kinds.index("reset")
    assert (frames[reset]["reason"], kinds[reset + 1]) == (reason, "snapshot")
    assert [frame["results"] for frame in frames if frame["type"] == "result"] == [{"answer": 2}]
    assert kinds.index("result") > reset
    assert (frames[-1]["type"], frames[-1]["state"], frames[-1]["outcome"]) == ("end", "success", "result")


async def test_a_cleared_run_retracts_its_result_and_sends_a_new_one(
    caller: httpx.AsyncClient, airflow: AirflowRestClient, tmp_path: Path
) -> None:
    marker = tmp_path / "cleared"
    conf = {"conf": {"cleared": str(marker)}}
    async with caller.stream(
        "POST", call("numbered_tries", "&until=run"), json=conf, headers={"Accept": "text/event-stream"}
    ) as response:
        events = Events(response, RUN_SECONDS)
        frames = await asyncio.wait_for(events.until("result"), RUN_SECONDS)
        assert frames[-1]["results"] == {"answer": 1}
        # The result comes before the task has ended. If it ended while Airflow clears it, it could stay `restarting`
        # until the scheduler misses its heartbeats (`clear_task_instances` does not lock it).
        await asyncio.wait_for(until_success_of("answer", events), RUN_SECONDS)
        await clear_answer(airflow, "numbered_tries", frames[0]["run_id"])
        marker.touch()
        frames = await events.rest(RUN_SECONDS)
    check_that_the_first_result_is_retracted(frames, "cleared")


async def test_a_running_task_that_is_cleared_retracts_its_result_and_sends_a_new_one(
    caller: httpx.AsyncClient, airflow: AirflowRestClient, tmp_path: Path
) -> None:
    marker = tmp_path / "cleared"
    conf = {"conf": {"cleared": str(marker)}}
    async with caller.stream(
        "POST", call("numbered_tries_pushed_early", "&until=run"), json=conf, headers={"Accept": "text/event-stream"}
    ) as response:
        events = Events(response, RUN_SECONDS)
        frames = await asyncio.wait_for(events.until("result"), RUN_SECONDS)
        assert frames[-1]["results"] == {"answer": 1}
        await clear_answer(airflow, "numbered_tries_pushed_early", frames[0]["run_id"])
        marker.touch()
        frames = await events.rest(RUN_SECONDS)
    assert "restarting" in states(frames, "answer")
    check_that_the_first_result_is_retracted(frames, "cleared")
