"""A run in a notebook, and its progress in a terminal."""

from __future__ import annotations

import html
import shutil
import sys
import time
from typing import Any, Protocol

from stream_server.client.outcomes import format_json
from stream_server.client.run_view import RunView

SHORTEST_UPDATE_SECONDS = 0.1
"""Least time between two updates of the display."""

MAX_ROWS = 50
"""Task instances of a table; the last ones are shown."""

MAX_TEXT_LENGTH = 5_000

BAR_LENGTH = 24


class Display(Protocol):
    def update(self, view: RunView) -> None: ...

    def close(self, view: RunView) -> None: ...


def open_display() -> Display:
    """Return the display of this process: a table in a notebook, a line on the standard error output elsewhere."""
    if (display := _find_notebook_display()) is not None:
        return NotebookDisplay(display)
    return TerminalDisplay()


class NotebookDisplay:
    """A table that is replaced as the run proceeds."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None
        self._updated_at = 0.0

    def update(self, view: RunView) -> None:
        now = time.monotonic()
        if now - self._updated_at >= SHORTEST_UPDATE_SECONDS:
            self._updated_at = now
            self._show(view)

    def close(self, view: RunView) -> None:
        self._show(view)

    def _show(self, view: RunView) -> None:
        bundle = build_mime_bundle(view)
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


class TerminalDisplay:
    """A line on the standard error output; only its last state where that is no terminal."""

    def __init__(self) -> None:
        self._updated_at = 0.0
        self._is_terminal = sys.stderr.isatty()

    def update(self, view: RunView) -> None:
        now = time.monotonic()
        if self._is_terminal and now - self._updated_at >= SHORTEST_UPDATE_SECONDS:
            self._updated_at = now
            # Clears the line first (ECMA-48 section 8.3.41): the one before may be longer.
            sys.stderr.write(f"\r\x1b[K{describe_line(view)[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()

    def close(self, view: RunView) -> None:
        sys.stderr.write(f"\r\x1b[K{describe_line(view)}\n" if self._is_terminal else f"{describe_line(view)}\n")
        sys.stderr.flush()


def build_mime_bundle(view: RunView) -> dict[str, str]:
    """Return the run as text and as HTML, for `_repr_mimebundle_`."""
    return {"text/plain": describe_line(view), "text/html": build_html(view)}


def describe_line(view: RunView) -> str:
    """Return a line with the progress of a run, or its outcome. Control characters are replaced."""
    done = round(view.fraction * BAR_LENGTH)
    name = f"{view.dag_id} {view.run_id}" if view.run_id is not None else "run"
    line = f"{name} [{'#' * done}{'.' * (BAR_LENGTH - done)}] {describe_state(view)}"
    return "".join(character if character.isprintable() else "�" for character in line)


def describe_state(view: RunView) -> str:
    """Return the state of the run, or its outcome, in words."""
    outcome = view.outcome
    if outcome is None:
        if view.questions:
            return f"{view.state}: waits for an answer to {', '.join(sorted(key.task_id for key in view.questions))}"
        return f"{view.state}" if view.waiting is None else f"{view.state}: waits ({view.waiting.reason})"
    return "result" if outcome.outcome == "result" else str(outcome.build_error())


def build_html(view: RunView) -> str:
    """Return a table of the task instances, the text so far, and the result or the failure."""
    rows = []
    for key, task in list(view.tasks.items())[-MAX_ROWS:]:
        name = key.task_id + (f"[{key.map_index}]" if key.map_index >= 0 else "")
        name += "" if key.iteration is None else f" (iteration {key.iteration})"
        report = task.progress
        fraction = "" if report is None or report.fraction is None else f"{report.fraction:.0%}"
        note = "" if report is None or report.text is None else report.text
        cells = (name, task.state or "", str(task.try_number), f"{fraction} {note}".strip())
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    left_out = f"<p>and {len(view.tasks) - MAX_ROWS} more</p>" if len(view.tasks) > MAX_ROWS else ""
    title = html.escape(f"{view.dag_id or ''} {view.run_id or ''}".strip())
    return (
        f"<div><b>{title}</b>: {html.escape(describe_state(view))} <progress value='{view.fraction:.3f}'></progress>"
        f"<table><tr><th>Task</th><th>State</th><th>Try</th><th>Progress</th></tr>{''.join(rows)}</table>{left_out}"
        f"{_build_text_html(view)}{_build_result_html(view)}</div>"
    )


def _build_text_html(view: RunView) -> str:
    text = view.text
    return f"<pre>{html.escape(text[-MAX_TEXT_LENGTH:])}</pre>" if text else ""


def _build_result_html(view: RunView) -> str:
    outcome = view.outcome
    if outcome is None or outcome.outcome != "result" or outcome.withheld:
        return ""
    text = format_json(outcome.results)
    return f"<pre>{html.escape(text[:MAX_TEXT_LENGTH])}</pre>"


def _find_notebook_display() -> Any:
    """Return IPython's function `display` in a notebook, else `None`. IPython is not imported for it."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # The class of kernels; the shell in a terminal has another one (`IPython.terminal.interactiveshell`).
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415

    return display
