"""What the client knows of a run, and how it is shown."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from stream_server.client.display import NotebookDisplay, TerminalDisplay, build_html, describe_line, open_display
from stream_server.client.frames import StreamFrame, decode_frame
from stream_server.client.run_view import InstanceKey, RunView

RUN = {"dag_id": "d", "run_id": "r<1>"}
ROW = {"seq": 1, "at": "2026-11-22T14:21:11.61Z"}
ASKED = {"asked_at": "2026-11-22T14:21:11.61Z", "task_id": "ask", "map_index": -1, "try_number": 1}
INFO = {"state": "running", "queued_at": None, "start_date": None, "end_date": None, "clear_number": 0}


def snapshot(*states: tuple[str, str | None], results: tuple[str, ...] = ()) -> dict[str, Any]:
    tasks = [
        {"task_id": task_id, "map_index": -1, "try_number": 1, "state": state, "start_date": None, "end_date": None}
        for task_id, state in states
    ]
    return {"type": "snapshot", **RUN, "run": INFO, "tasks": tasks, "result_tasks": [*results]}


def task(task_id: str, state: str | None, map_index: int = -1, try_number: int = 1) -> dict[str, Any]:
    members = {"task_id": task_id, "map_index": map_index, "try_number": try_number, "state": state}
    return {"type": "task", **RUN, **ROW, **members, "previous_state": None}


def output(kind: str, task_id: str, index: int, value: Any, try_number: int = 1) -> dict[str, Any]:
    members = {"task_id": task_id, "map_index": -1, "try_number": try_number, "index": index, "value": value}
    return {"type": kind, **RUN, **ROW, **members}


def view_of(*frames: dict[str, Any]) -> RunView:
    view = RunView()
    for frame in frames:
        view.record(cast("StreamFrame", decode_frame(json.dumps(frame).encode())))
    return view


def states_of(view: RunView) -> dict[str, str | None]:
    return {f"{key.task_id}:{key.map_index}": instance.state for key, instance in view.tasks.items()}


def test_mapped_instances_replace_the_task() -> None:
    view = view_of(snapshot(("m", None), ("a", "success")), task("m", "queued", 0), task("m", "running", 1))
    assert states_of(view) == {"a:-1": "success", "m:0": "queued", "m:1": "running"}
    assert view.fraction == pytest.approx(1 / 3)


def test_instances_that_were_counted_are_listed_once() -> None:
    counted = {**snapshot(), "counts": {"m": {"no_status": 2, "running": 1, "success": 1}}}
    queued = task("m", "queued", 0)
    view = view_of(counted, queued, {**task("m", "success", 1), "previous_state": "running"}, task("m", "running", 0))
    assert view.counts == {"m": {"no_status": 1, "running": 0, "success": 1}}
    assert states_of(view) == {"m:0": "running", "m:1": "success"}
    assert view.fraction == pytest.approx(2 / 4)


def test_an_instance_that_is_new_was_not_counted() -> None:
    counted = {**snapshot(), "counts": {"m": {"no_status": 2}}}
    view = view_of(counted, task("m", "queued", 2), task("m", "queued", 3), task("m", "success", 1))
    assert view.counts == {"m": {"no_status": 1}}
    assert view.fraction == pytest.approx(1 / 4)


def test_a_transition_from_a_state_that_was_not_counted_changes_no_count() -> None:
    counted = {**snapshot(), "counts": {"m": {"running": 2}}}
    view = view_of(counted, {**task("m", "success", 0), "previous_state": "queued"})
    assert view.counts == {"m": {"running": 2}}


def test_the_text_is_that_of_the_result_tasks() -> None:
    frames = [output("chunk", "log", 0, "noise"), output("chunk", "answer", 0, "Be"), output("chunk", "answer", 1, {})]
    view = view_of(snapshot(results=("answer",)), *frames, output("chunk", "answer", 2, "cause"))
    assert view.text == "Because"
    assert view_of(snapshot(), *frames).text == "noiseBe"
    assert view_of(snapshot(), output("chunk", "a", 0, "old"), output("chunk", "a", 0, "new", 2)).text == "new"


@pytest.mark.parametrize("retraction", [{"type": "reset", **RUN, "reason": "cleared"}, snapshot()])
def test_a_reset_and_a_snapshot_retract_what_came_before(retraction: dict[str, Any]) -> None:
    result = {"type": "result", **RUN, "results": {"a": 1}}
    view = view_of(snapshot(("a", "success")), output("chunk", "a", 0, "x"), result, retraction)
    assert (view.text, view.tasks, view.last_outcome) == ("", {}, None)


@pytest.mark.parametrize(
    ("frame", "is_open"),
    [
        (task("ask", "deferred"), True),
        (task("ask", "running", try_number=2), False),
        (task("ask", "success"), False),
        ({"type": "input_answered", **RUN, **ASKED, "answered_at": ASKED["asked_at"]}, False),
        ({"type": "end", **RUN, "state": "success", "outcome": "none"}, False),
    ],
)
def test_questions_are_open_until_they_are_answered(frame: dict[str, Any], is_open: bool) -> None:
    question = {"type": "input", **RUN, **ASKED, "subject": "Send it?", "options": ["Yes"]}
    view = view_of(snapshot(("ask", "running")), question)
    assert [*view.questions] == [InstanceKey("ask", -1, None)]
    assert "waits for an answer to ask" in describe_line(view)
    assert bool(view_of(snapshot(("ask", "running")), question, frame).questions) is is_open


def test_waiting_is_shown_until_the_run_proceeds() -> None:
    waiting = {"type": "waiting", **RUN, "reason": "dag_paused"}
    assert describe_line(view_of(snapshot(), waiting)).endswith("running: waits (dag_paused)")
    assert describe_line(view_of(snapshot(), waiting, task("a", "queued"))).endswith("running")


def test_texts_of_tasks_are_escaped_and_control_characters_replaced() -> None:
    report = {"fraction": 0.5, "text": "<b>half</b>"}
    view = view_of(snapshot(("<i>", "running")), output("progress", "<i>", 0, report), output("chunk", "<i>", 1, "<u>"))
    html = build_html(view)
    assert "<i>" not in html
    assert "&lt;b&gt;half&lt;/b&gt;" in html
    assert "&lt;u&gt;" in html
    assert "50%" in html
    failure = {"type": "failure", **RUN, "reason": "x\x1b[2J", "map_index": -1, "try_number": 1}
    ended = view_of(snapshot(), failure, {"type": "end", **RUN, "state": "failed", "outcome": "failure"})
    assert "\x1b" not in describe_line(ended)


def test_a_terminal_shows_the_last_state(capsys: pytest.CaptureFixture[str]) -> None:
    view = view_of(snapshot(("a", "success"), ("b", None)))
    display = TerminalDisplay()
    display.update(view)
    display.close(view)
    assert capsys.readouterr().err == f"d r<1> [{'#' * 12}{'.' * 12}] running\n"


def test_a_notebook_updates_one_output(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []

    def display(bundle: dict[str, str], **options: Any) -> Any:
        shown.append((bundle, options))
        return SimpleNamespace(update=lambda bundle, **options: shown.append((bundle, options)))

    notebook = NotebookDisplay(display)
    view = view_of(snapshot(("a", "running")))
    notebook.update(view)
    notebook.update(view)
    notebook.close(view)
    assert len(shown) == 2, "the second update comes too soon, and the last one always"
    assert shown[0][1] == {"raw": True, "display_id": True}
    # A shell without a kernel is a terminal.
    ipython = ModuleType("IPython")
    ipython.get_ipython = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert isinstance(open_display(), TerminalDisplay)
