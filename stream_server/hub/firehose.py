"""Streams of many runs: every transition as it commits, of all runs that a filter lets through. Pure.

What they tell is what the journal says, and no more: no snapshot and no outcome, which take the state of a run. Whoever
wants those watches the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

from stream_server.domain.transition import Transition
from stream_server.domain.transition_frames import is_output, tell
from stream_server.hub.redaction import withhold
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import Cursor
from stream_server.protocol.frames import AnyFrame, Ping, Reset, ResetReason, Resumed
from stream_server.protocol.wire import Wire, type_of

log = logging.getLogger(__name__)

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

    withheld: bool = False
    """Whether the caller may not read what tasks say: he is told that they have said something, and not what."""

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


class Reading(NamedTuple):
    """Something that one may be allowed to read, or not."""

    dag_id: str
    values: bool = False
    """Whether it is what the DAG's tasks say, and not its runs."""


Rights = Mapping[Reading, bool | None]
"""What somebody may read; `None` where that is to be asked first."""


class Readable(Protocol):
    """What somebody may read. What is not known is not told, and nothing is left out because of it."""

    max_wait: float
    """Seconds for which transitions may wait for an answer."""

    def may_read(self, reading: Reading) -> bool | None:
        """Tell whether he may read something; `None` where that is to be asked first."""

    def decide(self, readings: Collection[Reading], then: Callable[[], None]) -> None:
        """Ask about what is not known, and call something when there is an answer, or none is to be had just now."""

    async def among(self, readings: Collection[Reading]) -> Collection[Reading]:
        """Return what of something he may read, when that is known of all."""


class _Telling:
    """A transition on its way, encoded once with a cursor and once without, however many hear of it."""

    def __init__(self, transition: Transition, frame: AnyFrame, cursor: Cursor) -> None:
        self.transition = transition
        self.dag_id = transition.dag_id
        self.kind = type_of(frame)
        self.wire = Wire(frame)
        self.last = Wire(frame, cursor)

    @cached_property
    def bare(self) -> _Telling:
        """The same for who may not read values."""
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
        elif self._is_overdue(now) or sum(len(batch.heard) for batch, _ in self._held) > MAX_HELD:
            self.close(CloseCode.UNAVAILABLE, "Airflow can't be asked which DAGs you may read")

    def close(self, code: CloseCode, reason: str) -> None:
        """Close all connections, and drop all that waits."""
        self._held.clear()
        for subscription in self.subscriptions:
            subscription.close(code, reason)

    def _is_overdue(self, now: float) -> bool:
        """Whether the oldest batch that waits has waited for too long."""
        assert self.readable is not None, "otherwise nothing waits"
        oldest, _ = self._held[0]
        return now - oldest.now > self.readable.max_wait

    def tell_all(self, wires: list[Wire]) -> None:
        """Tell everybody something that takes the place of all that waits."""
        self._held.clear()
        for subscription in self.subscriptions:
            subscription.push(wires)

    def _go_on(self) -> None:
        """Tell what waits, until something is to be asked first."""
        if not self.subscriptions:
            # Nobody wants to know any more.
            self._held.clear()
        while self._held:
            batch, there = self._held[0]
            rights = self._rights(batch.heard)
            if undecided := {reading for reading, may in rights.items() if may is None}:
                assert self.readable is not None, "otherwise everything may be told"
                self.readable.decide(undecided, self._go_on)
                return
            del self._held[0]
            self._tell(batch, rights, there & self.subscriptions)

    def _rights(self, heard: Collection[_Telling]) -> Rights:
        """Return what may be told of a batch; nothing where everything may."""
        if self.readable is None:
            return {}
        rights = {reading: self.readable.may_read(reading) for reading in {Reading(one.dag_id) for one in heard}}
        for spoken in {Reading(one.dag_id, values=True) for one in heard if one.kind in SAID}:
            if rights[Reading(spoken.dag_id)] is not False:
                rights[spoken] = self.readable.may_read(spoken)
        return rights

    def _tell(self, batch: _Batch, rights: Rights, to: Iterable[Subscription]) -> None:
        heard = batch.heard if self.readable is None else _allowed(batch.heard, rights)
        if self.wanted.withheld:
            heard = [one.bare for one in heard]
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
            readable: What he may read; `None` for all.
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
        """Tell a batch to those whom it concerns, and now and then how far it goes to those whom it does not.

        An error in a batch costs a reset, and an error in a group costs its connections; neither is raised.
        """
        if not self._groups:
            return
        try:
            tellings = _tellings(transitions, cursor)
        except Exception:
            log.exception("Cannot make the frames of a batch; streams of many runs are resynced")
            self.begin_anew("transitions_lost", cursor)
            return
        bookmark = Wire(Ping(), cursor)
        for group in list(self._groups.values()):
            try:
                group.hear(tellings, bookmark, now)
            except Exception:
                log.exception("Cannot send a batch to a group of streams of many runs; their connections are closed")
                group.close(CloseCode.INTERNAL, "The server lost the state of this stream")

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


def readings(wanted: Filter, history: Iterable[Transition]) -> set[Reading]:
    """Return what somebody must be allowed to read to be told all of what has happened that he wants to hear."""
    concerned = [one for one in history if wanted.concerns(one)]
    return {
        *(Reading(one.dag_id) for one in concerned),
        *(Reading(one.dag_id, values=True) for one in concerned if is_output(one)),
    }


def missed(
    wanted: Filter,
    history: Sequence[Transition],
    position: Cursor,
    since: Cursor,
    allowed: Collection[Reading] | None = None,
) -> list[Wire]:
    """Tell what has happened between a client's cursor and a position.

    Args:
        wanted: What the client wants to hear.
        history: What its cursor has not seen, at least up to the position.
        position: How far it shall be told; what came later comes by itself.
        since: The client's cursor.
        allowed: What of `readings` the client may read; `None` for all.
    """
    past = [one for one in history if position.saw(one.txid)]
    tellings = [one for one in _tellings(past, position) if wanted.lets_through(one.transition, one.kind)]
    if allowed is not None:
        tellings = _allowed(tellings, dict.fromkeys(allowed, True))
    if wanted.withheld:
        tellings = [one.bare for one in tellings]
    if not tellings:
        return [Wire(Resumed(since=str(since)), position)]
    return [Wire(Resumed(since=str(since))), *(telling.wire for telling in tellings[:-1]), tellings[-1].last]


def _allowed(heard: Iterable[_Telling], rights: Rights) -> list[_Telling]:
    """Return what may be told of something, with the values that may be read."""
    return [
        one if one.kind not in SAID or rights.get(Reading(one.dag_id, values=True)) else one.bare
        for one in heard
        if rights.get(Reading(one.dag_id))
    ]


def _tellings(transitions: Iterable[Transition], cursor: Cursor) -> list[_Telling]:
    return [_Telling(one, frame, cursor) for one in transitions for frame in tell(one)]
