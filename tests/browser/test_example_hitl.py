"""Airflow's own example of its human-in-the-loop operators, answered in a browser and by all other ways in turn."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import anyio
from playwright.async_api import Page, expect
from websockets.asyncio.client import connect

from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.server import StreamServerProcess
from stream_server.client import answer_input
from stream_server.domain.run_state import RunKey
from support.airflow_callers import bearer_header
from support.browser_session import BrowserSession
from support.example_runs import wait_before_answer
from support.streams import Events, Frame, sse, states
from support.waiting import eventually

SECONDS = 120.0
DAG_ID = "example_hitl_operator"
ENTRY, APPROVAL, BRANCH = "wait_for_input", "valid_input_and_options", "choose_a_branch_to_run"
FIRST_TASKS = {ENTRY, "wait_for_option", "wait_for_multiple_options", "wait_for_default_option"}


async def test_the_example_is_answered_on_the_page_and_by_all_other_ways(
    browser: BrowserSession, auth_server: StreamServerProcess, rest: AirflowRestClient
) -> None:
    await asyncio.to_thread(eventually, lambda: rest.get_dag(DAG_ID), SECONDS, f"{DAG_ID} is read")
    key = RunKey(DAG_ID, await asyncio.to_thread(rest.trigger_run, DAG_ID))
    page = await browser.open(f"/runs/{key.dag_id}/{key.run_id}")
    async with sse(auth_server.url, key, "?until=run", bearer_header(rest.token), timeout=SECONDS) as events:
        frames = await frames_until_tasks_wait(events, FIRST_TASKS)
        await answer_on_page(page, "Please provide required information:", "OK", fill=("information", "the answer"))
        await answer_input(auth_server.url, *key, "wait_for_option", ["option 2"], token=rest.token)
        await answer_over_websocket(
            auth_server.url, rest.token, key, "wait_for_multiple_options", "option 4", "option 6"
        )
        frames += await frames_until_tasks_wait(events, {APPROVAL})
        await answer_on_command_line(auth_server.url, rest.token, key, APPROVAL, "Approve")
        frames += await frames_until_tasks_wait(events, {BRANCH})
        await answer_on_page(page, "You're now allowed to proceeded.", "task_2")
        with anyio.fail_after(SECONDS):
            frames += await events.rest(SECONDS)

    assert (frames[-1]["type"], frames[-1]["state"]) == ("end", "success")
    answers = {frame["task_id"]: frame for frame in frames if frame["type"] == "input_answered"}
    assert {task_id: answer["chosen_options"] for task_id, answer in answers.items()} == {
        ENTRY: ["OK"],
        "wait_for_option": ["option 2"],
        "wait_for_multiple_options": ["option 4", "option 6"],
        "wait_for_default_option": ["option 7"],
        APPROVAL: ["Approve"],
        BRANCH: ["task_2"],
    }
    assert answers[ENTRY]["params_input"] == {"information": "the answer"}
    assert [task_id for task_id, answer in answers.items() if answer.get("expired")] == ["wait_for_default_option"]
    approval = next(frame for frame in frames if frame["type"] == "input" and frame["task_id"] == APPROVAL)
    assert all(part in approval["body"] for part in ("the answer", "option 2", "option 4", "option 6", "option 7")), (
        approval["body"]
    )
    assert (approval["defaults"], approval["assignees"][1]["name"]) == (["Reject"], "admin")
    assert [states(frames, f"task_{number}")[-1] for number in (1, 2, 3)] == ["skipped", "success", "skipped"]
    await expect(page.get_by_role("region", name=f"Answer to {BRANCH}")).to_contain_text("task_2 by admin")


async def frames_until_tasks_wait(events: Events, task_ids: set[str]) -> list[Frame]:
    """Return the frames up to the one with which the last of these tasks has begun to wait for its answer."""
    frames: list[Frame] = []
    missing = set(task_ids)
    while missing:
        frame = await events.next()
        frames.append(frame)
        if frame["type"] == "task" and frame["state"] == "awaiting_input":
            missing.discard(frame["task_id"])
    await wait_before_answer()
    return frames


async def answer_on_page(page: Page, subject: str, option: str, fill: tuple[str, str] | None = None) -> None:
    form = page.get_by_role("form", name=subject)
    if fill is not None:
        await form.get_by_label(fill[0]).fill(fill[1])
    await form.get_by_label(option).check()
    await form.get_by_role("button", name="Send answer").click()
    await expect(form).to_be_hidden(timeout=SECONDS * 1000)


async def answer_over_websocket(url: str, token: str, key: RunKey, task_id: str, *options: str) -> None:
    message = {"op": "answer", "id": "q", **key._asdict(), "task_id": task_id, "chosen_options": options}
    address = url.replace("http", "ws", 1) + "/api/v2/stream"
    async with connect(address, additional_headers=bearer_header(token), proxy=None) as connection:
        await connection.send(json.dumps(message))
        assert json.loads(await connection.recv()) == {"type": "ack", "op": "answer", "id": "q"}


async def answer_on_command_line(url: str, token: str, key: RunKey, task_id: str, option: str) -> None:
    command = [sys.executable, "-m", "stream_server", "answer", *key, task_id, "--option", option, "--url", url]
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "STREAM_SERVER_TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, output.decode()
