"""Buffer of a task's output: numbers the items, bounds their size, and pushes them in batches to Airflow.

A push takes Airflow about 27 ms: from the task through its supervisor and the Execution API to the database. The first
item is pushed at once. Items that follow soon after a push go into the next batch; see `push_pacing`.

If several threads of a task may use the connection to its supervisor (Airflow 3.2 and later), a thread pushes: the task
does not wait for the push, and the output does not wait for the next item. Otherwise a batch is pushed when the task
emits its next item, or when it ends; in an event loop also by a timer.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable
from typing import Any

from stream_server.authoring.push_pacing import PUSH_INTERVAL_SECONDS, PushPacing

log = logging.getLogger(__name__)

MAX_BATCH_BYTES = 128 * 1024
"""JSON text of one push. The triggers store pushes up to twice that size (`OUTPUT_BYTES` in `journal.queries`)."""

MAX_ITEM_BYTES = 64 * 1024
"""JSON text of one item."""

MAX_TRY_BYTES = 8 * 1024 * 1024
"""JSON text of all output of one try, by default."""

TRY_BYTES_VARIABLE = "STREAM_SERVER_EMIT_MAX_BYTES"
"""Environment variable on the Airflow worker that overrides `MAX_TRY_BYTES`."""

INTERVAL_VARIABLE = "STREAM_SERVER_EMIT_INTERVAL_MS"
"""Environment variable on the Airflow worker that overrides `PUSH_INTERVAL_SECONDS`, in milliseconds."""

MAX_INTERVAL_MS = 60 * 60 * 1000
"""Largest time between two pushes that `INTERVAL_VARIABLE` sets. `Condition.wait` rejects some larger ones."""

MAX_FAILURES = 3
"""Consecutive failed pushes after which a try emits nothing more."""

BUSY_ERROR = "DeadlockImminentError"
"""Error of Airflow 3.3 and later for a call from an event loop while another request of the loop is in flight."""

MAX_BUSY_PUSHES = 1000
"""Consecutive pushes with that error that are not failures. A request of a tool of an agent can take seconds."""

CLOSE_TIMEOUT_SECONDS = 10.0
"""How long the end of a task waits for the last push."""

Item = dict[str, Any]
Push = Callable[[dict[str, Any]], object]


class OutputBuffer:
    """Output of one try of a task instance. Never fails the task: errors are logged, each kind once.

    Args:
        try_number: Number of the try.
        push: Stores a batch. Any exception counts as a failed push.
        threaded: Whether `push` may be called from another thread.
        first_index: Number of items that the try has pushed before, in another process.
    """

    def __init__(self, try_number: int, push: Push, *, threaded: bool, first_index: int = 0) -> None:
        self._try_number = try_number
        self._push = push
        self._queue: deque[tuple[Item, int]] = deque()
        self._changed = threading.Condition()
        self._push_lock = threading.Lock()
        self._unsent_batch: dict[str, Any] | None = None
        self._next_index = first_index
        self._bytes_left = _read_max_try_bytes()
        self._failures = 0
        self._busy_pushes = 0
        self._pacing = PushPacing(_read_push_interval(), threaded=threaded)
        self._timer_loop: AbstractEventLoop | None = None
        self._closed = False
        self._warned: set[str] = set()
        self._thread = (
            threading.Thread(target=self._run, name="stream_server output", daemon=True) if threaded else None
        )

    def add(self, item: Item) -> None:
        """Queue an item, and push it unless the last push was too recent or a thread pushes."""
        cleaned, size = self._sanitize(item)
        with self._changed:
            if cleaned is None or self._closed or self._failures >= MAX_FAILURES:
                return
            if size > self._bytes_left:
                self.warn_once(
                    "limit",
                    f"The output of this try exceeds {_read_max_try_bytes()} bytes; the rest is not streamed. Set"
                    f" {TRY_BYTES_VARIABLE} on the worker to raise the limit",
                )
                self._bytes_left = 0
                return
            self._bytes_left -= size
            self._queue.append((cleaned, size))
            self._pacing.record_item(time.monotonic())
            self._changed.notify()
        if self._thread is None:
            if self._pacing.is_due(time.monotonic()):
                self.flush()
        elif self._thread.ident is None:
            self._thread.start()

    def warn_once(self, kind: str, text: str) -> None:
        """Log a problem of a kind, unless one of that kind was logged for this try."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s (the task is not affected)", text)

    def flush(self) -> None:
        """Push all queued items from the calling thread."""
        while self._push_batch():
            pass

    def push_later(self, loop: AbstractEventLoop) -> None:
        """Push the queued items from the running loop `loop` when they are due, unless a thread pushes."""
        # A loop that ends drops its timer. So a timer of another loop is not one to rely on.
        if self._thread is None and self._has_items and self._timer_loop is not loop:
            self._timer_loop = loop
            loop.call_later(self._pacing.next_push_at() - time.monotonic(), self._push_from, loop)

    def _push_from(self, loop: AbstractEventLoop) -> None:
        self._timer_loop = None
        if self._pacing.is_due(time.monotonic()):
            self.flush()
        self.push_later(loop)

    def close(self) -> None:
        """Push the queued items and reject all later ones."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_SECONDS)
        else:
            while self._push_batch() or self._has_items:
                pass

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._has_items and not self._closed:
                    self._changed.wait()
                remaining = self._pacing.next_push_at() - time.monotonic()
                if remaining > 0 and not self._closed:
                    self._changed.wait(remaining)
                    continue
            if not self._push_batch() and self._closed and not self._has_items:
                return

    @property
    def _has_items(self) -> bool:
        """Whether items are to be pushed. After `MAX_FAILURES` there are none."""
        return bool(self._queue) or self._unsent_batch is not None

    def _push_batch(self) -> bool:
        """Push one batch. Return false if there is none, or if the push failed."""
        with self._push_lock:
            if self._unsent_batch is None:
                self._unsent_batch = self._take_batch()
            if self._unsent_batch is None:
                return False
            began = time.monotonic()
            try:
                self._push(self._unsent_batch)
            except Exception as error:  # noqa: BLE001 # no error may fail the task
                if type(error).__name__ == BUSY_ERROR and self._busy_pushes < MAX_BUSY_PUSHES:
                    self._busy_pushes += 1
                else:
                    self._record_failure(error)
                return False
            finally:
                self._pacing.record_push(began, time.monotonic())
            self._unsent_batch, self._failures, self._busy_pushes = None, 0, 0
        return True

    def _take_batch(self) -> dict[str, Any] | None:
        with self._changed:
            batch: list[Item] = []
            size = 0
            while self._queue and (not batch or size + self._queue[0][1] <= MAX_BATCH_BYTES):
                item, item_size = self._queue.popleft()
                batch.append(item)
                size += item_size
            first, self._next_index = self._next_index, self._next_index + len(batch)
        return {"try_number": self._try_number, "index": first, "items": batch} if batch else None

    def _record_failure(self, error: Exception) -> None:
        # The batch stays for the next push. If it was stored despite the error, the server recognises it by its index.
        self._failures += 1
        self.warn_once("push", f"A push of output failed, and the output may not be streamed: {error!r}")
        if self._failures >= MAX_FAILURES:
            self._unsent_batch = None
            with self._changed:
                self._queue.clear()

    def _sanitize(self, item: Item) -> tuple[Item | None, int]:
        """Return an item as PostgreSQL can store it, and its size; `None` in place of an invalid one."""
        try:
            text = json.dumps(_remove_unstorable(item), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            self.warn_once("json", f"A value is not streamed, because it is not a JSON value: {error}")
            return None, 0
        if len(text) > MAX_ITEM_BYTES:
            self.warn_once(
                "size",
                f"A value is not streamed: it has {len(text)} bytes as JSON text; the limit is {MAX_ITEM_BYTES}",
            )
            return None, 0
        return json.loads(text), len(text)


def _remove_unstorable(value: object) -> object:
    """Return a value without the characters that PostgreSQL's `jsonb` rejects: NUL and lone surrogates."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_remove_unstorable(key): _remove_unstorable(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_remove_unstorable(member) for member in value]
    return value


def _read_push_interval() -> float:
    return _read_variable(INTERVAL_VARIABLE, round(PUSH_INTERVAL_SECONDS * 1000), MAX_INTERVAL_MS) / 1000


def _read_max_try_bytes() -> int:
    return _read_variable(TRY_BYTES_VARIABLE, MAX_TRY_BYTES, sys.maxsize)


def _read_variable(name: str, default: int, largest: int) -> int:
    text = os.environ.get(name, "")
    if not text.isascii() or not text.isdecimal():
        return default
    digits = text.lstrip("0") or "0"
    # `int` rejects a text of thousands of digits.
    return min(int(digits), largest) if len(digits) <= len(str(largest)) else largest
