"""Streams of many runs: every transition as it commits, of all runs that a filter lets through. Pure.

What they tell is what the journal says, and no more: no snapshot and no outcome, which take the state of a run. Whoever
wants those watches the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stream_server.cursor import Cursor
from stream_server.frames import AnyFrame, Ping, Reset, ResetReason, Resumed, Wire
from stream_server.subscription import Subscription
from stream_server.telling import tell
from stream_server.transition import Kind, Transition

TYPES = ("task", "run")
"""Types of frames that such a stream has, beside those of the connection."""

BOOKMARK_SECONDS = 5.0
"""How often a client is told how far the journal has been read, although nothing was for it."""


class Filter(NamedTuple):
    """What is let through: what each member names, or everything where it names nothing."""

    dag_ids: frozenset[str] = frozenset()
    run_ids: frozenset[str] = frozenset()
    task_ids: frozenset[str] = frozenset()
    """Tasks; runs have none, and are let through only by a filter that names no tasks."""

    states: frozenset[str] = frozenset()
    """States after the transition; `no_status` for none."""

    types: frozenset[str] = frozenset()

    def lets_through(self, transition: Transition) -> bool:
        """Tell whether a transition is told."""
        kind = "task" if transition.kind is Kind.TASK else "run"
        return (
            (not self.dag_ids or transition.dag_id in self.dag_ids)
            and (not self.run_ids or transition.run_id in self.run_ids)
            and (not self.task_ids or transition.task_id in self.task_ids)
            and (not self.states or (transition.state or "no_status") in self.states)
            and (not self.types or kind in self.types)
        )


class _Telling:
    """A transition on its way, encoded once with a cursor and once without, however many hear of it."""

    def __init__(self, transition: Transition, frame: AnyFrame, cursor: Cursor) -> None:
        self.transition = transition
        self.wire = Wire(frame)
        self.last = Wire(frame, cursor)


class _Group:
    """Those with the same filter."""

    def __init__(self, now: float) -> None:
        self.subscriptions: set[Subscription] = set()
        self.told_at = now


class Firehose:
    """Who follows many runs."""

    def __init__(self) -> None:
        self._groups: dict[Filter, _Group] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def join(self, wanted: Filter, subscription: Subscription, cursor: Cursor, now: float) -> None:
        """Let somebody follow from a cursor on; it is due to him at once, so that he can come back to it.

        Args:
            wanted: What he wants to hear.
            subscription: His place.
            cursor: How far the journal has been read.
            now: The time, in seconds of any steady clock.
        """
        self._groups.setdefault(wanted, _Group(now)).subscriptions.add(subscription)
        subscription.push([Wire(Ping(), cursor)])

    def leave(self, wanted: Filter, subscription: Subscription) -> None:
        """Forget somebody."""
        group = self._groups.get(wanted)
        if group is not None:
            group.subscriptions.discard(subscription)
            if not group.subscriptions:
                del self._groups[wanted]

    def dispatch(self, transitions: Iterable[Transition], cursor: Cursor, now: float) -> None:
        """Tell a batch to those whom it concerns, and now and then how far it goes to those whom it does not."""
        if not self._groups:
            return
        tellings = _tellings(transitions, cursor)
        bookmark = Wire(Ping(), cursor)
        for wanted, group in list(self._groups.items()):
            heard = [telling for telling in tellings if wanted.lets_through(telling.transition)]
            if heard:
                wires = [*(telling.wire for telling in heard[:-1]), heard[-1].last]
            elif tellings and now - group.told_at >= BOOKMARK_SECONDS:
                wires = [bookmark]
            else:
                continue
            group.told_at = now
            for subscription in group.subscriptions:
                subscription.push(wires)

    def begin_anew(self, reason: ResetReason, cursor: Cursor) -> None:
        """Tell all that something is missing from what they heard."""
        wires = anew(reason, cursor)
        for group in self._groups.values():
            for subscription in group.subscriptions:
                subscription.push(wires)


def anew(reason: ResetReason, cursor: Cursor) -> list[Wire]:
    """Tell that something is missing, and where it goes on."""
    return [Wire(Reset(reason=reason), cursor)]


def missed(wanted: Filter, history: Sequence[Transition], position: Cursor, since: Cursor) -> list[Wire]:
    """Tell what has happened between a client's cursor and a position.

    Args:
        wanted: What the client wants to hear.
        history: What its cursor has not seen, at least up to the position.
        position: How far it shall be told; what came later comes by itself.
        since: The client's cursor.
    """
    past = [one for one in history if position.saw(one.txid) and wanted.lets_through(one)]
    tellings = _tellings(past, position)
    if not tellings:
        return [Wire(Resumed(since=str(since)), position)]
    return [Wire(Resumed(since=str(since))), *(telling.wire for telling in tellings[:-1]), tellings[-1].last]


def _tellings(transitions: Iterable[Transition], cursor: Cursor) -> list[_Telling]:
    return [_Telling(one, frame, cursor) for one in transitions if (frame := tell(one)) is not None]
