"""Random moves of a run, for property tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from hypothesis import strategies as st

from support.builders import FINISHED, History

Move = tuple[str, int]
"""A change of a run, and a number that selects one of its task instances."""

_NEXT = {
    None: "scheduled",
    "up_for_retry": "scheduled",
    "up_for_reschedule": "scheduled",
    "deferred": "scheduled",
    "scheduled": "queued",
    "queued": "running",
    "restarting": None,
}
_FROM_RUNNING = {"fail": "failed", "retry": "up_for_retry", "reschedule": "up_for_reschedule", "defer": "deferred"}
_FROM_NOTHING = {"skip": "skipped", "upstream_fail": "upstream_failed", "remove": "removed"}
_LIKELY_MOVES = ("read", "read", "fetch", "start", "push", "run", "run", "push", "emit", "succeed", "retry")
_ALL_MOVES = (
    *(*_FROM_RUNNING, *_FROM_NOTHING, "advance", "advance", "clear", "clear", "clear", "kill"),
    *("succeed_directly", "mark_success", "expand", "start_run", "finish_run", "delete_run"),
)


def run_histories_of(*names: str) -> st.SearchStrategy[list[Move]]:
    """Generate histories of a run from these moves. Readers read the journal at `read`, and the values at `fetch`."""
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 11)), min_size=15, max_size=60)


run_histories = run_histories_of(*_LIKELY_MOVES * 4, *_ALL_MOVES)


def apply_move(history: History, move: Move) -> None:
    """Apply a move, if it is possible in Airflow now; `read` and `fetch` change nothing.

    Raises:
        KeyError: There is no such move.
    """
    name, number = move
    instance = task_id, map_index = sorted(history.rows)[number % len(history.rows)]
    state = history.rows[instance].state
    set_task = partial(history.set_task, task_id, map_index=map_index)
    running, fresh = state == "running", state in {None, "up_for_retry"}
    # No process runs for a task that waits after a deferral. From the database, a push then would look like one before.
    can_push = history.rows[instance].try_number > 0 and instance not in history.resuming
    possible: dict[str, tuple[bool, Callable[[], object]]] = {
        **{to: (running, partial(set_task, state=_FROM_RUNNING[to])) for to in _FROM_RUNNING},
        **{to: (state is None, partial(set_task, state=_FROM_NOTHING[to])) for to in _FROM_NOTHING},
        "advance": (state in _NEXT, partial(set_task, state=_NEXT.get(state))),
        "start": (fresh, partial(history.start, *instance)),
        "run": (fresh, partial(history.run_task, task_id, None, map_index)),
        "emit": (
            history.rows[instance].try_number > 0,
            partial(history.emit_output, task_id, "and", "so on", map_index=map_index),
        ),
        "push": (can_push, partial(history.push, task_id, None, map_index)),
        "succeed": (running, partial(history.succeed, *instance)),
        "succeed_directly": (state is None, partial(history.succeed_directly, *instance)),
        "kill": (state not in FINISHED, partial(set_task, state="failed")),
        "mark_success": (True, partial(set_task, state="success")),
        "expand": (state is None and map_index == -1, partial(history.expand, task_id, 1 + number % 3)),
        "clear": (True, partial(history.clear, task_id, counted=number % 2 == 0)),
        "start_run": (history.run.state == "queued", partial(history.set_run, "running")),
        "finish_run": (history.run.state == "running", partial(history.set_run, ("failed", "success")[number % 2])),
        "delete_run": (number == 0, history.delete),
        "read": (False, history.cursor),
        "fetch": (False, history.cursor),
    }
    is_possible, act = possible[name]
    if is_possible and not history.deleted:
        act()
