"""`emit` and `progress`: send output of a running task to the clients that watch its run.

The output goes through Airflow as an XCom of the task. Each push overwrites its value; triggers in Airflow's database
record every value. The task needs no access to the database and no package but Airflow.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

from airflow.sdk import get_current_context
from airflow.sdk.bases.xcom import BaseXCom

from stream_server.authoring.output_buffer import OutputBuffer

log = logging.getLogger(__name__)

OUTPUT_KEY = "stream_server_output"
"""Key of the XCom; the same as `OUTPUT` in `stream_server.domain.transition`."""

RunningTask: TypeAlias = Any
"""Airflow's `RuntimeTaskInstance`, which is not type-checked here."""

_lock = threading.Lock()
_current: tuple[UUID | str, OutputBuffer] | None = None
"""ID of the task instance try that emits in this process, and its buffer. `dag.test()` runs several tries in turn."""


def emit(value: object) -> None:
    """Send a value from a running task, such as a token or a row. Clients that watch the run receive a `chunk` frame.

    Outside of a running task it does nothing. It never fails the task: errors are logged, each kind once.

    Args:
        value: Any JSON value, at most 64 KiB as JSON text. Clients append text to the text before it.
    """
    run_in_task(lambda buffer: buffer.add({"chunk": value}))


def progress(fraction: float | None, text: str | None = None) -> None:
    """Send the progress of a running task. Clients that watch the run receive a `progress` frame. Limits as for `emit`.

    Args:
        fraction: From 0 to 1; `None` if unknown.
        text: Description of the current step.
    """

    def add(buffer: OutputBuffer) -> None:
        bounded = None if fraction is None else min(max(float(fraction), 0.0), 1.0)
        buffer.add({"progress": bounded, "text": text})

    run_in_task(add)


def finish() -> None:
    """Push the buffered output. Called at the end of each task that has emitted any."""
    global _current  # a process runs one task at a time
    with _lock:
        current, _current = _current, None
    if current is not None:
        current[1].close()


def flush() -> None:
    """Push the buffered output now, from the calling thread."""
    with _lock:
        current = _current
    if current is not None:
        current[1].flush()


def run_in_task(emit_items: Callable[[OutputBuffer], object]) -> None:
    """Call a function with the output buffer of the running task, if there is one, and push soon what it adds.

    Errors are logged, each kind once: no value and no code that prepares it may fail the task.
    """
    task = _running_task()
    if task is None:
        return
    buffer = _buffer_of(task)
    try:
        emit_items(buffer)
        # In an event loop the task may await for a long time before it emits again.
        with suppress(RuntimeError):
            buffer.push_later(asyncio.get_running_loop())
    except Exception as error:  # noqa: BLE001 # no error may fail the task
        # Not `repr`: that of a foreign error may fail, too.
        reason = "".join(traceback.format_exception_only(type(error), error)).strip()
        buffer.warn_once(type(error).__name__, f"A value is not streamed, because it can't be read: {reason}")


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
    buffer = OutputBuffer(
        task.try_number,
        partial(_push_xcom, task),
        threaded=_can_push_from_thread(),
        first_index=_find_next_index(task),
    )
    with _lock:
        _current = (task.id, buffer)
    _finish_after_task(task.task)
    return buffer


def _find_next_index(task: RunningTask) -> int:
    """Return the index after the output of the same try before it was deferred or asked for human input, else 0."""
    if not getattr(getattr(task, "_ti_context_from_server", None), "next_method", None):
        return 0
    # Airflow deletes the XComs of a task when a try starts, but not when it is resumed.
    try:
        batch = BaseXCom.get_one(
            key=OUTPUT_KEY,
            dag_id=task.dag_id,
            task_id=task.task_id,
            run_id=task.run_id,
            map_index=task.map_index,
        )
        return int(batch["index"]) + len(batch["items"]) if batch["try_number"] == task.try_number else 0
    except Exception as error:  # noqa: BLE001 # no error may fail the task
        log.warning("Output before the task was deferred is retracted, because it can't be read: %r", error)
        return 0


def _push_xcom(task: RunningTask, batch: dict[str, Any]) -> None:
    # Not `task.xcom_push`: an XCom backend may store values outside of the database, where no trigger sees them.
    push = getattr(BaseXCom, "_push", None)
    if push is not None:
        # Airflow 3.4: `set` does not find the iteration of a task loop when the function of the task has ended.
        push(task, OUTPUT_KEY, batch)
        return
    BaseXCom.set(
        key=OUTPUT_KEY,
        value=batch,
        dag_id=task.dag_id,
        task_id=task.task_id,
        run_id=task.run_id,
        map_index=task.map_index,
    )


def _can_push_from_thread() -> bool:
    """Whether a thread may push: Airflow locks the connection to its supervisor (from 3.2 on), and no event loop runs.

    With an event loop, Airflow 3.3 fails a call from the loop's thread while another thread uses the connection.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # Not imported here: the DAG processor reads DAG files without this module.
        runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
        return hasattr(getattr(runner, "SUPERVISOR_COMMS", None), "_thread_lock")
    return False


def _finish_after_task(operator: Any) -> None:  # noqa: ANN401 # Airflow's
    """Make `operator` push the last output before Airflow stores the task's return value or its failure.

    Airflow's supervisor stores a failure after the task's process has ended, and the process calls the failure
    callbacks before that (`airflow.sdk.execution_time.supervisor.STATES_SENT_DIRECTLY`).
    """
    original = operator.post_execute

    def post_execute(context: Any, result: Any = None) -> None:  # noqa: ANN401 # Airflow's
        finish()
        original(context, result)

    def on_failure(_context: Any) -> None:  # noqa: ANN401 # Airflow's
        finish()

    operator.post_execute = post_execute
    operator.on_failure_callback = [on_failure, *(operator.on_failure_callback or ())]
