"""What a task says, on its way to Airflow: numbered, bounded, and pushed a few times a second.

A push takes Airflow about 27 ms: it goes from the task over its supervisor and the Execution API to the database. The
first item is pushed at once, and what follows within `INTERVAL` of a push goes along with the next one.

Where Airflow lets several threads of a task speak to its supervisor (from 3.2 on), a thread of ours pushes: the task
does not wait for it, and what it has said does not wait for what it says next. Elsewhere it is pushed by what the task
says next, or by its end.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

PUSH_INTERVAL_SECONDS = 0.04
"""Seconds between two pushes, at least."""

MAX_BATCH_BYTES = 128 * 1024
"""JSON text of one push; the server keeps pushes of twice that (`stream_server.journal.queries.OUTPUT_BYTES`)."""

MAX_ITEM_BYTES = 64 * 1024
"""JSON text of one thing that is said."""

MAX_TRY_BYTES = 8 * 1024 * 1024
"""JSON text of all that one try says, by default."""

TRY_BYTES_VARIABLE = "STREAM_SERVER_EMIT_MAX_BYTES"
"""Environment variable of the worker with another bound."""

MAX_FAILURES = 3
"""Pushes that may fail, one after the other, before a try says nothing more."""

CLOSE_TIMEOUT_SECONDS = 10.0
"""How long the end of a task waits for a push that is under way."""

Item = dict[str, Any]
Push = Callable[[dict[str, Any]], object]


class OutputBuffer:
    """Says what one try of a task instance says. Nothing here ever fails the task: what goes wrong is logged, once.

    Args:
        try_number: The try.
        push: Takes what is to be stored; it may raise anything.
        threaded: Whether `push` may be called from another thread.
    """

    def __init__(self, try_number: int, push: Push, *, threaded: bool) -> None:
        self._try_number = try_number
        self._push = push
        self._queue: deque[tuple[Item, int]] = deque()
        self._changed = threading.Condition()
        self._push_lock = threading.Lock()
        self._unsent_batch: dict[str, Any] | None = None
        self._next_index = 0
        self._bytes_left = _read_max_try_bytes()
        self._failures = 0
        self._pushed_at = float("-inf")
        self._closed = False
        self._warned: set[str] = set()
        self._thread = (
            threading.Thread(target=self._run, name="stream_server output", daemon=True) if threaded else None
        )

    def add(self, item: Item) -> None:
        """Have something pushed."""
        cleaned, size = self._sanitize(item)
        with self._changed:
            if cleaned is None or self._closed or self._failures >= MAX_FAILURES:
                return
            if size > self._bytes_left:
                self._warn_once(
                    f"It has said more than {_read_max_try_bytes()} bytes, and nothing more of it is streamed; set"
                    f" {TRY_BYTES_VARIABLE} on the worker to change that"
                )
                self._bytes_left = 0
                return
            self._bytes_left -= size
            self._queue.append((cleaned, size))
            self._changed.notify()
        if self._thread is None:
            if time.monotonic() - self._pushed_at >= PUSH_INTERVAL_SECONDS:
                self.flush()
        elif self._thread.ident is None:
            self._thread.start()

    def flush(self) -> None:
        """Push all that is due, from this thread."""
        while self._push_batch():
            pass

    def close(self) -> None:
        """Push what is left, and say nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(CLOSE_TIMEOUT_SECONDS)
        else:
            self.flush()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and self._unsent_batch is None and not self._closed:
                    self._changed.wait()
                rest = self._pushed_at + PUSH_INTERVAL_SECONDS - time.monotonic()
                if rest > 0 and not self._closed:
                    self._changed.wait(rest)
                    continue
            if not self._push_batch() and self._closed:
                return

    def _push_batch(self) -> bool:
        """Push as much as may be pushed at once; false if nothing was due, or it failed."""
        with self._push_lock:
            if self._unsent_batch is None:
                self._unsent_batch = self._take_batch()
            if self._unsent_batch is None:
                return False
            try:
                self._push(self._unsent_batch)
            except Exception as error:  # noqa: BLE001 # whatever it is, the task goes on
                self._record_failure(error)
                return False
            finally:
                self._pushed_at = time.monotonic()
            self._unsent_batch, self._failures = None, 0
        return True

    def _take_batch(self) -> dict[str, Any] | None:
        with self._changed:
            batch: list[Item] = []
            size = 0
            while self._queue and (not batch or size + self._queue[0][1] <= MAX_BATCH_BYTES):
                item, more = self._queue.popleft()
                batch.append(item)
                size += more
            first, self._next_index = self._next_index, self._next_index + len(batch)
        return {"try_number": self._try_number, "index": first, "items": batch} if batch else None

    def _record_failure(self, error: Exception) -> None:
        """Try the same batch again next time: where it was stored after all, the server knows it by its index."""
        self._failures += 1
        self._warn_once(f"What it says could not be pushed, and may not be streamed: {error!r}")
        if self._failures >= MAX_FAILURES:
            self._unsent_batch = None
            with self._changed:
                self._queue.clear()

    def _sanitize(self, item: Item) -> tuple[Item | None, int]:
        """Return an item as PostgreSQL can store it, and its size; `None` instead of what can't be."""
        try:
            text = json.dumps(_remove_unstorable(item), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            self._warn_once(f"Only JSON values can be streamed, and one is none: {error}")
            return None, 0
        if len(text) > MAX_ITEM_BYTES:
            self._warn_once(
                f"A value has {len(text)} bytes as JSON text, and is not streamed; at most {MAX_ITEM_BYTES} are"
            )
            return None, 0
        return json.loads(text), len(text)

    def _warn_once(self, text: str) -> None:
        kind = text[:20]
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s (the task itself goes on)", text)


def _remove_unstorable(value: object) -> object:
    """Return a value without the characters that PostgreSQL's `jsonb` refuses: NUL, and halves of surrogate pairs."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_remove_unstorable(key): _remove_unstorable(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_remove_unstorable(member) for member in value]
    return value


def _read_max_try_bytes() -> int:
    text = os.environ.get(TRY_BYTES_VARIABLE, "")
    return int(text) if text.isascii() and text.isdecimal() else MAX_TRY_BYTES
