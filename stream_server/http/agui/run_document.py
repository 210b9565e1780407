"""The DAG run in the state of an agent: a bounded document, and its changes as JSON Patch (RFC 6902). Pure."""

from __future__ import annotations

from typing import Any

from stream_server.http.chat.answer import name_instance
from stream_server.protocol.frames import RunTransition, Snapshot, TaskInfo, TaskTransition
from stream_server.protocol.schema import Json

MEMBER = "dag_run"
"""Member of the state. The others belong to the page."""

OMITTED = "omitted_tasks"
MAX_TASKS = 200
"""Task instances in the state. A client sends its state back with each request, whose size is limited."""


class RunDocument:
    """What a client knows of a run.

    Args:
        state: The state of the client, whose other members are kept.
    """

    def __init__(self, state: Any) -> None:  # noqa: ANN401 # any JSON value
        self._kept: Json = dict(state) if isinstance(state, dict) else {}
        self._kept.pop(MEMBER, None)
        self._tasks: dict[str, Json] = {}
        self._omitted: set[str] = set()
        """Names of the task instances that the document does not have."""

        self._run: Json | None = None

    def replace(self, snapshot: Snapshot) -> None:
        """Begin again with a snapshot."""
        known = [task for task in snapshot.tasks if task.state is not None]
        self._tasks = {name_instance(task): _describe(task) for task in known[-MAX_TASKS:]}
        self._omitted = {name_instance(task) for task in known[:-MAX_TASKS]}
        self._run = {
            "dag_id": snapshot.dag_id,
            "run_id": snapshot.run_id,
            "state": snapshot.run.state,
            OMITTED: len(self._omitted),
        }
        if snapshot.counts:
            self._run["counts"] = snapshot.counts

    def build_state(self) -> Json:
        """Return the whole state of the client."""
        return self._kept if self._run is None else {**self._kept, MEMBER: {**self._run, "tasks": self._tasks}}

    def apply(self, frame: TaskTransition | RunTransition) -> list[Json]:
        """Return the patch of a transition; empty if it changes nothing in the document."""
        if self._run is None:
            return []
        if isinstance(frame, RunTransition):
            self._run["state"] = frame.state
            return [{"op": "replace", "path": f"/{MEMBER}/state", "value": frame.state}]
        name = name_instance(frame)
        if name not in self._tasks and len(self._tasks) >= MAX_TASKS:
            if name in self._omitted:
                return []
            self._omitted.add(name)
            self._run[OMITTED] = len(self._omitted)
            return [{"op": "replace", "path": f"/{MEMBER}/{OMITTED}", "value": len(self._omitted)}]
        self._tasks[name] = _describe(frame)
        # `add` also replaces a member (RFC 6902, section 4.1).
        return [{"op": "add", "path": f"/{MEMBER}/tasks/{_escape(name)}", "value": self._tasks[name]}]


def _describe(task: TaskInfo | TaskTransition) -> Json:
    instance: Json = {"task_id": task.task_id, "map_index": task.map_index}
    if task.iteration is not None:
        instance["iteration"] = task.iteration
    return {**instance, "state": task.state, "try_number": task.try_number}


def _escape(name: str) -> str:
    """Return a reference token of a JSON Pointer (RFC 6901, section 3)."""
    return name.replace("~", "~0").replace("/", "~1")
