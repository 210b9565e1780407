"""Journal rows for tests of the firehose, and what it sent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from stream_server.domain.transition import OUTPUT_KEY, Transition, TransitionKind
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.wire import Wire


def cursor(number: int) -> JournalPosition:
    return JournalPosition("e", number, number)


def transition(seq: int, dag_id: str = "a", task_id: str | None = "t", state: str | None = "queued") -> Transition:
    kind = TransitionKind.RUN if task_id is None else TransitionKind.TASK
    return Transition(
        seq, seq, datetime(2026, 1, 1, tzinfo=timezone.utc), kind, dag_id, "r", task_id, -1, 1, state, None, 0
    )


def output_row(seq: int, dag_id: str = "a") -> Transition:
    body = '{"try_number": 1, "index": 0, "items": [{"chunk": "secret"}]}'
    return transition(seq, dag_id)._replace(kind=TransitionKind.XCOM, xcom_key=OUTPUT_KEY, body=body)


def sent_types(subscription: Subscription) -> list[str]:
    return [wire.type for wire in subscription.take()]


def last_cursor(wires: Sequence[Wire]) -> JournalPosition | None:
    assert all(wire.token is None for wire in wires[:-1]), "only the last frame of a batch has one"
    token = wires[-1].token
    return None if token is None else token.position
