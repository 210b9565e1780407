"""Streams of many runs: every transition as it commits, of all runs that a filter lets through. Pure.

What they tell is what the journal says, and no more: no snapshot and no outcome, which take the state of a run. Whoever
wants those watches the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

from stream_server.close_codes import CloseCode
from stream_server.cursor import Cursor
from stream_server.frames import AnyFrame, Ping, Reset, ResetReason, Resumed, Wire, type_of
from stream_server.subscription import Subscription
from stream_server.telling import tell
from stream_server.transition import Transition
from stream_server.withholding import withhold

TYPES = ("task", "run", "chunk", "progress")
"""Types of frames that such a stream has, beside those of the connection; the last two only where they are named."""

SAID = frozenset({"chunk", "progress"})
"""Types of frames about what running tasks say."""

MAX_HELD = 10_000
"""Transitions that may wait until it is known who may read their DAGs."""

BOOKMARK_SECONDS = 5.0
"""How often a client is told how far the journal has been read, although nothing was for it."""


class Filter(NamedTuple):
    """What is let through: what each member names, or everything where it names nothing."""

    dag_ids: frozenset[str] = frozenset()
    run_ids: frozenset[str] = frozenset()
    task_ids: frozenset[str] = frozenset()
    """Tasks; runs have none, and are let through only by a filter that names no tasks."""

    states: frozenset[str] = frozenset()
    """States after the transition; `no_status` for none. What tasks say is let through only by a filter without any."""

    types: frozenset[str] = frozenset()
    """Types of frames; what tasks say is let through only where it is named."""

    @property
    def wants_output(self) -> bool:
        """Whether anything that tasks say is let through."""
        return bool(self.types & SAID) and not self.states

    def concerns(self, transition: Transition) -> bool:
        """Tell whether the DAG, run and task of a transition are among those that are named."""
        return (
            (not self.dag_ids or transition.dag_id in self.dag_ids)
            and (not self.run_ids or transition.run_id in self.run_ids)
            and (not self.task_ids or transition.task_id in self.task_ids)
        )

    def lets_through(self, transition: Transition, kind: str) -> bool:
        """Tell whether a transition is told by a frame of a type."""
        if not self.concerns(transition):
            return False
        if kind in SAID:
            return kind in self.types and not self.states
        return (not self.states or (transition.state or "no_status") in self.states) and (
            not self.types or kind in self.types
        )


class Readable(Protocol):
    """Which DAGs somebody may read. What is not known is not told, and nothing is left out because of it."""

    def may_read(self, dag_id: str) -> bool | None:
        """Tell whether he may read a DAG; `None` where that is to be asked first."""

    def decide(self, dag_ids: Collection[str], then: Callable[[], None]) -> None:
        """Ask about DAGs, and call something when all is known."""

    async def among(self, dag_ids: Collection[str]) -> Collection[str]:
        """Return which of some DAGs he may read, when that is known of all."""


class _Telling:
    """A transition on its way, encoded once with a cursor and once without, however many hear of it."""

    def __init__(self, transition: Transition, frame: AnyFrame, cursor: Cursor) -> None:
        self.transition = transition
        self.kind = type_of(frame)
        self.wire = Wire(frame)
        self.last = Wire(frame, cursor)

    @cached_property
    def bare(self) -> _Telling:
        """The same for who may not read values, as far as is known."""
        if self.kind not in SAID:
            return self
        (frame,), cursor = withhold([self.wire.frame]), self.last.cursor
        assert cursor is not None, "it is made with one"
        return _Telling(self.transition, frame, cursor)


class _Batch(NamedTuple):
    """What a group hears at once."""

    heard: Sequence[_Telling]
    bookmark: Wire
    news: bool
    """Whether anything happened at all."""

    now: float


class _Group:
    """Those with the same filter, who may read the same DAGs."""

    def __init__(self, wanted: Filter, readable: Readable | None, now: float) -> None:
        self.wanted = wanted
        self.readable = readable
        self.subscriptions: set[Subscription] = set()
        self._held: list[tuple[_Batch, set[Subscription]]] = []
        """What waits until it is known whether it may be told, all that came after it, and who was there then."""

        self._told_at = now

    @property
    def waiting(self) -> bool:
        """Whether something is to be asked before there is more to tell."""
        return bool(self._held)

    @property
    def key(self) -> tuple[Filter, Readable | None]:
        return self.wanted, self.readable

    def hear(self, tellings: Sequence[_Telling], bookmark: Wire, now: float) -> None:
        """Tell a batch, or have it wait."""
        heard = [one for one in tellings if self.wanted.lets_through(one.transition, one.kind)]
        batch, rights = _Batch(heard, bookmark, bool(tellings), now), self._rights(heard)
        if not self._held and None not in rights.values():
            self._tell(batch, rights, self.subscriptions)
            return
        self._held.append((batch, self.subscriptions.copy()))
        if len(self._held) == 1:
            self._go_on()
        elif sum(len(batch.heard) for batch, _ in self._held) > MAX_HELD:
            for subscription in self.subscriptions:
                subscription.close(CloseCode.UNAVAILABLE, "Airflow can't be asked which DAGs you may read")
            self._held.clear()

    def tell_all(self, wires: list[Wire]) -> None:
        """Tell everybody something that takes the place of all that waits."""
        self._held.clear()
        for subscription in self.subscriptions:
            subscription.push(wires)

    def _go_on(self) -> None:
        """Tell what waits, until something is to be asked first."""
        while self._held:
            batch, there = self._held[0]
            rights = self._rights(batch.heard)
            if undecided := {dag_id for dag_id, may in rights.items() if may is None}:
                assert self.readable is not None, "otherwise everything may be told"
                self.readable.decide(undecided, self._go_on)
                return
            del self._held[0]
            self._tell(batch, rights, there & self.subscriptions)

    def _rights(self, heard: Iterable[_Telling]) -> dict[str, bool | None]:
        """Return what may be told, by DAG; nothing where everything may."""
        if self.readable is None:
            return {}
        return {dag_id: self.readable.may_read(dag_id) for dag_id in {one.transition.dag_id for one in heard}}

    def _tell(self, batch: _Batch, rights: Mapping[str, bool | None], to: Iterable[Subscription]) -> None:
        heard = [one.bare for one in batch.heard if rights[one.transition.dag_id]] if rights else batch.heard
        if heard:
            wires = [*(telling.wire for telling in heard[:-1]), heard[-1].last]
        elif batch.news and batch.now - self._told_at >= BOOKMARK_SECONDS:
            wires = [batch.bookmark]
        else:
            return
        self._told_at = batch.now
        for subscription in to:
            subscription.push(wires)


class Firehose:
    """Who follows many runs."""

    def __init__(self) -> None:
        self._groups: dict[tuple[Filter, Readable | None], _Group] = {}
        self._places: dict[Subscription, _Group] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def wants_body(self, transition: Transition) -> bool:
        """Tell whether somebody wants to know what a task has said."""
        return any(wanted.wants_output and wanted.concerns(transition) for wanted, _ in self._groups)

    def join(
        self,
        wanted: Filter,
        subscription: Subscription,
        cursor: Cursor,
        now: float,
        readable: Readable | None = None,
    ) -> None:
        """Let somebody follow from a cursor on; it is due to him at once, so that he can come back to it.

        Args:
            wanted: What he wants to hear.
            subscription: His place.
            cursor: How far the journal has been read.
            now: The time, in seconds of any steady clock.
            readable: Which DAGs he may read; `None` for all.
        """
        self._put(wanted, readable, subscription, now)
        subscription.push([Wire(Ping(), cursor)])

    def show(self, subscription: Subscription, readable: Readable | None, now: float) -> None:
        """Tell somebody other DAGs from the next batch on."""
        group = self._places[subscription]
        if group.waiting:
            # What waits for an answer about him who he was can't be told to who he is.
            subscription.close(CloseCode.ACCESS_CHANGED, "What you may see has changed")
            return
        self.leave(subscription)
        self._put(group.wanted, readable, subscription, now)

    def leave(self, subscription: Subscription) -> None:
        """Forget somebody."""
        group = self._places.pop(subscription, None)
        if group is None:
            return
        group.subscriptions.discard(subscription)
        if not group.subscriptions:
            del self._groups[group.key]

    def dispatch(self, transitions: Iterable[Transition], cursor: Cursor, now: float) -> None:
        """Tell a batch to those whom it concerns, and now and then how far it goes to those whom it does not."""
        if not self._groups:
            return
        tellings = _tellings(transitions, cursor)
        bookmark = Wire(Ping(), cursor)
        for group in list(self._groups.values()):
            group.hear(tellings, bookmark, now)

    def begin_anew(self, reason: ResetReason, cursor: Cursor) -> None:
        """Tell all that something is missing from what they heard."""
        wires = anew(reason, cursor)
        for group in self._groups.values():
            group.tell_all(wires)

    def _put(self, wanted: Filter, readable: Readable | None, subscription: Subscription, now: float) -> None:
        group = self._groups.get((wanted, readable))
        if group is None:
            group = self._groups[wanted, readable] = _Group(wanted, readable, now)
        group.subscriptions.add(subscription)
        self._places[subscription] = group


def anew(reason: ResetReason, cursor: Cursor) -> list[Wire]:
    """Tell that something is missing, and where it goes on."""
    return [Wire(Reset(reason=reason), cursor)]


def missed(
    wanted: Filter, history: Sequence[Transition], position: Cursor, since: Cursor, *, bare: bool = False
) -> list[Wire]:
    """Tell what has happened between a client's cursor and a position.

    Args:
        wanted: What the client wants to hear.
        history: What its cursor has not seen, at least up to the position.
        position: How far it shall be told; what came later comes by itself.
        since: The client's cursor.
        bare: Whether what tasks say is told without its values.
    """
    past = [one for one in history if position.saw(one.txid)]
    tellings = [one for one in _tellings(past, position) if wanted.lets_through(one.transition, one.kind)]
    if bare:
        tellings = [one.bare for one in tellings]
    if not tellings:
        return [Wire(Resumed(since=str(since)), position)]
    return [Wire(Resumed(since=str(since))), *(telling.wire for telling in tellings[:-1]), tellings[-1].last]


def _tellings(transitions: Iterable[Transition], cursor: Cursor) -> list[_Telling]:
    return [_Telling(one, frame, cursor) for one in transitions for frame in tell(one)]
