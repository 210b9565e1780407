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
from stream_server.domain.transition_frames import frames_of, is_output
from stream_server.hub.redaction import redact
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.frames import AnyFrame, Ping, Reset, ResetReason, Resumed
from stream_server.protocol.wire import Wire, type_of

log = logging.getLogger(__name__)

FRAME_TYPES = ("task", "run", "chunk", "progress")
"""Types of frames that such a stream has, beside those of the connection; the last two only where they are named."""

OUTPUT_TYPES = frozenset({"chunk", "progress"})
"""Types of frames about what running tasks say."""

MAX_PENDING_TRANSITIONS = 10_000
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

    redacted: bool = False
    """Whether the caller may not read what tasks say: he is told that they have said something, and not what."""

    @property
    def wants_output(self) -> bool:
        """Whether anything that tasks say is let through."""
        return bool(self.types & OUTPUT_TYPES) and not self.states

    def matches_ids(self, transition: Transition) -> bool:
        """Tell whether the DAG, run and task of a transition are among those that are named."""
        return (
            (not self.dag_ids or transition.dag_id in self.dag_ids)
            and (not self.run_ids or transition.run_id in self.run_ids)
            and (not self.task_ids or transition.task_id in self.task_ids)
        )

    def matches(self, transition: Transition, kind: str) -> bool:
        """Tell whether a transition is told by a frame of a type."""
        if not self.matches_ids(transition):
            return False
        if kind in OUTPUT_TYPES:
            return kind in self.types and not self.states
        return (not self.states or (transition.state or "no_status") in self.states) and (
            not self.types or kind in self.types
        )


class Resource(NamedTuple):
    """Something that one may be allowed to read, or not."""

    dag_id: str
    output: bool = False
    """Whether it is what the DAG's tasks say, and not its runs."""


PermissionMap = Mapping[Resource, bool | None]
"""What somebody may read; `None` where that is to be asked first."""


class ReadPermissions(Protocol):
    """What somebody may read. What is not known is not told, and nothing is left out because of it."""

    max_wait: float
    """Seconds for which transitions may wait for an answer."""

    def may_read(self, reading: Resource) -> bool | None:
        """Tell whether he may read something; `None` where that is to be asked first."""

    def request_decision(self, readings: Collection[Resource], then: Callable[[], None]) -> None:
        """Ask about what is not known, and call something when there is an answer, or none is to be had just now."""

    async def filter_readable(self, readings: Collection[Resource]) -> Collection[Resource]:
        """Return what of something he may read, when that is known of all."""


class _EncodedTransition:
    """A transition on its way, encoded once with a cursor and once without, however many hear of it."""

    def __init__(self, transition: Transition, frame: AnyFrame, token: ResumeToken) -> None:
        self.transition = transition
        self.dag_id = transition.dag_id
        self.frame_type = type_of(frame)
        self.wire = Wire(frame)
        self.wire_with_cursor = Wire(frame, token)

    @cached_property
    def without_values(self) -> _EncodedTransition:
        """The same for who may not read values."""
        if self.frame_type not in OUTPUT_TYPES:
            return self
        (frame,), token = redact([self.wire.frame]), self.wire_with_cursor.token
        assert token is not None, "it is made with one"
        return _EncodedTransition(self.transition, frame, token)


class _GroupBatch(NamedTuple):
    """What a group hears at once."""

    transitions: Sequence[_EncodedTransition]
    bookmark: Wire
    has_news: bool
    """Whether anything happened at all."""

    now: float


class _FirehoseGroup:
    """Those with the same filter, who may read the same DAGs."""

    def __init__(self, wanted: Filter, readable: ReadPermissions | None, now: float) -> None:
        self.transition_filter = wanted
        self.permissions = readable
        self.subscriptions: set[Subscription] = set()
        self._pending: list[tuple[_GroupBatch, set[Subscription]]] = []
        """What waits until it is known whether it may be told, all that came after it, and who was there then."""

        self._published_at = now

    @property
    def is_waiting(self) -> bool:
        """Whether something is to be asked before there is more to tell."""
        return bool(self._pending)

    @property
    def key(self) -> tuple[Filter, ReadPermissions | None]:
        return self.transition_filter, self.permissions

    def enqueue(self, tellings: Sequence[_EncodedTransition], bookmark: Wire, now: float) -> None:
        """Tell a batch, or have it wait."""
        heard = [one for one in tellings if self.transition_filter.matches(one.transition, one.frame_type)]
        batch, rights = _GroupBatch(heard, bookmark, bool(tellings), now), self._permissions_for(heard)
        if not self._pending and None not in rights.values():
            self._publish(batch, rights, self.subscriptions)
            return
        self._pending.append((batch, self.subscriptions.copy()))
        if len(self._pending) == 1:
            self._publish_ready()
        elif (
            self._is_overdue(now) or sum(len(batch.transitions) for batch, _ in self._pending) > MAX_PENDING_TRANSITIONS
        ):
            self.close(CloseCode.UNAVAILABLE, "Airflow can't be asked which DAGs you may read")

    def close(self, code: CloseCode, reason: str) -> None:
        """Close all connections, and drop all that waits."""
        self._pending.clear()
        for subscription in self.subscriptions:
            subscription.disconnect(code, reason)

    def _is_overdue(self, now: float) -> bool:
        """Whether the oldest batch that waits has waited for too long."""
        assert self.permissions is not None, "otherwise nothing waits"
        oldest, _ = self._pending[0]
        return now - oldest.now > self.permissions.max_wait

    def publish_reset(self, wires: list[Wire]) -> None:
        """Tell everybody something that takes the place of all that waits."""
        self._pending.clear()
        for subscription in self.subscriptions:
            subscription.push(wires)

    def _publish_ready(self) -> None:
        """Tell what waits, until something is to be asked first."""
        if not self.subscriptions:
            # Nobody wants to know any more.
            self._pending.clear()
        while self._pending:
            batch, there = self._pending[0]
            rights = self._permissions_for(batch.transitions)
            if undecided := {reading for reading, may in rights.items() if may is None}:
                assert self.permissions is not None, "otherwise everything may be told"
                self.permissions.request_decision(undecided, self._publish_ready)
                return
            del self._pending[0]
            self._publish(batch, rights, there & self.subscriptions)

    def _permissions_for(self, heard: Collection[_EncodedTransition]) -> PermissionMap:
        """Return what may be told of a batch; nothing where everything may."""
        if self.permissions is None:
            return {}
        rights = {reading: self.permissions.may_read(reading) for reading in {Resource(one.dag_id) for one in heard}}
        for spoken in {Resource(one.dag_id, output=True) for one in heard if one.frame_type in OUTPUT_TYPES}:
            if rights[Resource(spoken.dag_id)] is not False:
                rights[spoken] = self.permissions.may_read(spoken)
        return rights

    def _publish(self, batch: _GroupBatch, rights: PermissionMap, to: Iterable[Subscription]) -> None:
        heard = batch.transitions if self.permissions is None else _filter_permitted(batch.transitions, rights)
        if self.transition_filter.redacted:
            heard = [one.without_values for one in heard]
        if heard:
            wires = [*(telling.wire for telling in heard[:-1]), heard[-1].wire_with_cursor]
        elif batch.has_news and batch.now - self._published_at >= BOOKMARK_SECONDS:
            wires = [batch.bookmark]
        else:
            return
        self._published_at = batch.now
        for subscription in to:
            subscription.push(wires)


class Firehose:
    """Who follows many runs."""

    def __init__(self) -> None:
        self._groups: dict[tuple[Filter, ReadPermissions | None], _FirehoseGroup] = {}
        self._group_of: dict[Subscription, _FirehoseGroup] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def wants_output_of(self, transition: Transition) -> bool:
        """Tell whether somebody wants to know what a task has said."""
        return any(wanted.wants_output and wanted.matches_ids(transition) for wanted, _ in self._groups)

    def add(
        self,
        wanted: Filter,
        subscription: Subscription,
        cursor: JournalPosition,
        now: float,
        readable: ReadPermissions | None = None,
    ) -> None:
        """Let somebody follow from a cursor on; it is due to him at once, so that he can come back to it.

        Args:
            wanted: What he wants to hear.
            subscription: His place.
            cursor: How far the journal has been read.
            now: The time, in seconds of any steady clock.
            readable: What he may read; `None` for all.
        """
        self._add_to_group(wanted, readable, subscription, now)
        subscription.push([Wire(Ping(), ResumeToken(cursor))])

    def update_permissions(self, subscription: Subscription, readable: ReadPermissions | None, now: float) -> None:
        """Tell somebody other DAGs from the next batch on."""
        group = self._group_of[subscription]
        if group.is_waiting:
            # What waits for an answer about him who he was can't be told to who he is.
            subscription.disconnect(CloseCode.ACCESS_CHANGED, "What you may see has changed")
            return
        self.remove(subscription)
        self._add_to_group(group.transition_filter, readable, subscription, now)

    def remove(self, subscription: Subscription) -> None:
        """Forget somebody."""
        group = self._group_of.pop(subscription, None)
        if group is None:
            return
        group.subscriptions.discard(subscription)
        if not group.subscriptions:
            del self._groups[group.key]

    def dispatch(self, transitions: Iterable[Transition], cursor: JournalPosition, now: float) -> None:
        """Tell a batch to those whom it concerns, and now and then how far it goes to those whom it does not.

        An error in a batch costs a reset, and an error in a group costs its connections; neither is raised.
        """
        if not self._groups:
            return
        try:
            tellings = _encode(transitions, cursor)
        except Exception:
            log.exception("Cannot make the frames of a batch; streams of many runs are resynced")
            self.resync("transitions_lost", cursor)
            return
        bookmark = Wire(Ping(), ResumeToken(cursor))
        for group in list(self._groups.values()):
            try:
                group.enqueue(tellings, bookmark, now)
            except Exception:
                log.exception("Cannot send a batch to a group of streams of many runs; their connections are closed")
                group.close(CloseCode.INTERNAL, "The server lost the state of this stream")

    def resync(self, reason: ResetReason, cursor: JournalPosition) -> None:
        """Tell all that something is missing from what they heard."""
        wires = reset_wires(reason, cursor)
        for group in self._groups.values():
            group.publish_reset(wires)

    def _add_to_group(
        self, wanted: Filter, readable: ReadPermissions | None, subscription: Subscription, now: float
    ) -> None:
        group = self._groups.get((wanted, readable))
        if group is None:
            group = self._groups[wanted, readable] = _FirehoseGroup(wanted, readable, now)
        group.subscriptions.add(subscription)
        self._group_of[subscription] = group


def reset_wires(reason: ResetReason, cursor: JournalPosition) -> list[Wire]:
    """Tell that something is missing, and where it goes on."""
    return [Wire(Reset(reason=reason), ResumeToken(cursor))]


def required_resources(wanted: Filter, history: Iterable[Transition]) -> set[Resource]:
    """Return what somebody must be allowed to read to be told all of what has happened that he wants to hear."""
    concerned = [one for one in history if wanted.matches_ids(one)]
    return {
        *(Resource(one.dag_id) for one in concerned),
        *(Resource(one.dag_id, output=True) for one in concerned if is_output(one)),
    }


def replay(
    wanted: Filter,
    history: Sequence[Transition],
    position: JournalPosition,
    since: ResumeToken,
    allowed: Collection[Resource] | None = None,
) -> list[Wire]:
    """Tell what has happened between a client's cursor and a position.

    Args:
        wanted: What the client wants to hear.
        history: What its cursor has not seen, at least up to the position.
        position: How far it shall be told; what came later comes by itself.
        since: The client's cursor.
        allowed: What of `readings` the client may read; `None` for all.
    """
    past = [one for one in history if position.is_visible(one.txid)]
    tellings = [one for one in _encode(past, position) if wanted.matches(one.transition, one.frame_type)]
    if allowed is not None:
        tellings = _filter_permitted(tellings, dict.fromkeys(allowed, True))
    if wanted.redacted:
        tellings = [one.without_values for one in tellings]
    if not tellings:
        return [Wire(Resumed(since=str(since)), ResumeToken(position))]
    return [
        Wire(Resumed(since=str(since))),
        *(telling.wire for telling in tellings[:-1]),
        tellings[-1].wire_with_cursor,
    ]


def _filter_permitted(heard: Iterable[_EncodedTransition], rights: PermissionMap) -> list[_EncodedTransition]:
    """Return what may be told of something, with the values that may be read."""
    return [
        one
        if one.frame_type not in OUTPUT_TYPES or rights.get(Resource(one.dag_id, output=True))
        else one.without_values
        for one in heard
        if rights.get(Resource(one.dag_id))
    ]


def _encode(transitions: Iterable[Transition], cursor: JournalPosition) -> list[_EncodedTransition]:
    token = ResumeToken(cursor)
    return [_EncodedTransition(one, frame, token) for one in transitions for frame in frames_of(one)]
