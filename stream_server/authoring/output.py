"""`emit` and `progress`: what a running task says to those who watch its run.

It goes through Airflow as an XCom of the task, whose value is overwritten each time: triggers in Airflow's database
keep what each push said. The task needs no access to the database, and nothing but Airflow.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

from airflow.sdk import get_current_context
from airflow.sdk.bases.xcom import BaseXCom

from stream_server.authoring.output_buffer import PUSH_INTERVAL_SECONDS, Item, OutputBuffer

OUTPUT_KEY = "stream_server_output"
"""Key of the XCom; `stream_server.transition.OUTPUT` is the other side."""

RunningTask: TypeAlias = Any
"""Airflow's `RuntimeTaskInstance`, which is not type-checked here."""

_lock = threading.Lock()
_current: tuple[UUID | str, OutputBuffer] | None = None
"""Who speaks in this process: one task instance in one try, or one after the other, as in `dag.test()`."""


def emit(value: object) -> None:
    """Say something in a running task: a token of its answer, a row. Those who watch the run get it as a `chunk`.

    Outside of a running task it does nothing. It never fails the task: what can't be streamed is logged, once.

    Args:
        value: Any JSON value, of 64 KiB at most as JSON text. Clients append text to what came before.
    """
    _emit_item({"chunk": value})


def progress(fraction: float | None, text: str | None = None) -> None:
    """Say how far a running task has come. As `emit` otherwise.

    Args:
        fraction: From 0 to 1; `None` where that can't be said.
        text: The same in words.
    """
    _emit_item({"progress": None if fraction is None else min(max(float(fraction), 0.0), 1.0), "text": text})


def finish() -> None:
    """Push what was said and not pushed yet. Airflow calls it at the end of a task that has said something."""
    global _current  # a process runs one task at a time
    with _lock:
        speaking, _current = _current, None
    if speaking is not None:
        speaking[1].close()


def _emit_item(item: Item) -> None:
    task = _running_task()
    if task is None:
        return
    speaker = _buffer_of(task)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        speaker.add(item)
    else:
        speaker.add(item)
        # Nothing else would push it while the task waits for something.
        loop.call_later(PUSH_INTERVAL_SECONDS, speaker.flush)


def _running_task() -> RunningTask | None:
    try:
        task = get_current_context()["ti"]
    except (RuntimeError, KeyError):
        return None
    return task if hasattr(task, "try_number") else None


def _buffer_of(task: RunningTask) -> OutputBuffer:
    global _current  # noqa: PLW0603 # as above
    with _lock:
        if _current is not None and _current[0] == task.id:
            return _current[1]
    finish()
    speaker = OutputBuffer(task.try_number, partial(_push_xcom, task), threaded=_can_push_from_thread())
    with _lock:
        _current = (task.id, speaker)
    _finish_after_task(task.task)
    return speaker


def _push_xcom(task: RunningTask, batch: dict[str, Any]) -> None:
    # Not `task.xcom_push`: an XCom backend may put values elsewhere, and the triggers see the database alone.
    BaseXCom.set(
        key=OUTPUT_KEY,
        value=batch,
        dag_id=task.dag_id,
        task_id=task.task_id,
        run_id=task.run_id,
        map_index=task.map_index,
    )


def _can_push_from_thread() -> bool:
    """Tell whether Airflow guards the connection to the supervisor against threads, as from 3.2 on.

    Not beside an event loop: Airflow 3.3 fails a call from its thread that finds the connection taken.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # Not imported: a DAG file is read without it.
        runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
        return hasattr(getattr(runner, "SUPERVISOR_COMMS", None), "_thread_lock")
    return False


def _finish_after_task(operator: Any) -> None:  # noqa: ANN401 # Airflow's
    """Have what was said last pushed before Airflow stores what the task returns, or that it has failed for good.

    Airflow's supervisor stores a failure when the process has ended, and that calls callbacks before
    (`airflow.sdk.execution_time.supervisor.STATES_SENT_DIRECTLY`).
    """
    before = operator.post_execute

    def post_execute(context: Any, result: Any = None) -> None:  # noqa: ANN401 # Airflow's
        finish()
        before(context, result)

    def on_failure(_context: Any) -> None:  # noqa: ANN401 # Airflow's
        finish()

    operator.post_execute = post_execute
    operator.on_failure_callback = [on_failure, *(operator.on_failure_callback or ())]
