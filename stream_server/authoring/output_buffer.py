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

INTERVAL = 0.04
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

CLOSING_SECONDS = 10.0
"""How long the end of a task waits for a push that is under way."""

Item = dict[str, Any]
Push = Callable[[dict[str, Any]], object]


class Speaker:
    """Says what one try of a task instance says. Nothing here ever fails the task: what goes wrong is logged, once.

    Args:
        try_number: The try.
        push: Takes what is to be stored; it may raise anything.
        threaded: Whether `push` may be called from another thread.
    """

    def __init__(self, try_number: int, push: Push, *, threaded: bool) -> None:
        self._try_number = try_number
        self._push = push
        self._due: deque[tuple[Item, int]] = deque()
        self._changed = threading.Condition()
        self._pushing = threading.Lock()
        self._unsent: dict[str, Any] | None = None
        self._index = 0
        self._bytes_left = _max_try_bytes()
        self._failures = 0
        self._pushed_at = float("-inf")
        self._closed = False
        self._warned: set[str] = set()
        self._thread = (
            threading.Thread(target=self._run, name="stream_server output", daemon=True) if threaded else None
        )

    def say(self, item: Item) -> None:
        """Have something pushed."""
        cleaned, size = self._checked(item)
        with self._changed:
            if cleaned is None or self._closed or self._failures >= MAX_FAILURES:
                return
            if size > self._bytes_left:
                self._warn(
                    f"It has said more than {_max_try_bytes()} bytes, and nothing more of it is streamed; set"
                    f" {TRY_BYTES_VARIABLE} on the worker to change that"
                )
                self._bytes_left = 0
                return
            self._bytes_left -= size
            self._due.append((cleaned, size))
            self._changed.notify()
        if self._thread is None:
            if time.monotonic() - self._pushed_at >= INTERVAL:
                self.flush()
        elif self._thread.ident is None:
            self._thread.start()

    def flush(self) -> None:
        """Push all that is due, from this thread."""
        while self._push_some():
            pass

    def close(self) -> None:
        """Push what is left, and say nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(CLOSING_SECONDS)
        else:
            self.flush()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due and self._unsent is None and not self._closed:
                    self._changed.wait()
                rest = self._pushed_at + INTERVAL - time.monotonic()
                if rest > 0 and not self._closed:
                    self._changed.wait(rest)
                    continue
            if not self._push_some() and self._closed:
                return

    def _push_some(self) -> bool:
        """Push as much as may be pushed at once; false if nothing was due, or it failed."""
        with self._pushing:
            if self._unsent is None:
                self._unsent = self._next_batch()
            if self._unsent is None:
                return False
            try:
                self._push(self._unsent)
            except Exception as error:  # noqa: BLE001 # whatever it is, the task goes on
                self._failed(error)
                return False
            finally:
                self._pushed_at = time.monotonic()
            self._unsent, self._failures = None, 0
        return True

    def _next_batch(self) -> dict[str, Any] | None:
        with self._changed:
            batch: list[Item] = []
            size = 0
            while self._due and (not batch or size + self._due[0][1] <= MAX_BATCH_BYTES):
                item, more = self._due.popleft()
                batch.append(item)
                size += more
            first, self._index = self._index, self._index + len(batch)
        return {"try_number": self._try_number, "index": first, "items": batch} if batch else None

    def _failed(self, error: Exception) -> None:
        """Try the same batch again next time: where it was stored after all, the server knows it by its index."""
        self._failures += 1
        self._warn(f"What it says could not be pushed, and may not be streamed: {error!r}")
        if self._failures >= MAX_FAILURES:
            self._unsent = None
            with self._changed:
                self._due.clear()

    def _checked(self, item: Item) -> tuple[Item | None, int]:
        """Return an item as PostgreSQL can store it, and its size; `None` instead of what can't be."""
        try:
            text = json.dumps(_storable(item), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            self._warn(f"Only JSON values can be streamed, and one is none: {error}")
            return None, 0
        if len(text) > MAX_ITEM_BYTES:
            self._warn(f"A value has {len(text)} bytes as JSON text, and is not streamed; at most {MAX_ITEM_BYTES} are")
            return None, 0
        return json.loads(text), len(text)

    def _warn(self, text: str) -> None:
        kind = text[:20]
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s (the task itself goes on)", text)


def _storable(value: object) -> object:
    """Return a value without the characters that PostgreSQL's `jsonb` refuses: NUL, and halves of surrogate pairs."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_storable(key): _storable(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(member) for member in value]
    return value


def _max_try_bytes() -> int:
    text = os.environ.get(TRY_BYTES_VARIABLE, "")
    return int(text) if text.isascii() and text.isdecimal() else MAX_TRY_BYTES
