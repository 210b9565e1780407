"""Streams of many runs: each transition as it commits, of all runs that match a filter. Pure.

They send what the journal has, and no more: a snapshot or an outcome would take the state of a run. A client that needs
those watches the run.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from stream_server.domain.replay import Gap
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.domain.transition_frames import frames_of, is_output
from stream_server.hub.filters import Filter, PermissionMap, ReadPermissions, Resource
from stream_server.hub.redaction import redact, redact_inputs
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.frames import AnyFrame, Ping, Reset, ResetReason, Resumed
from stream_server.protocol.wire import Wire, type_of

log = logging.getLogger(__name__)

MAX_PENDING_TRANSITIONS = 10_000
"""Transitions of a group that may wait for permissions. Beyond that its clients are disconnected."""

BOOKMARK_SECONDS = 5.0
"""How often a client for which nothing matches gets a `ping` with the position, so that it can resume there."""


class _EncodedTransition:
    """The frame of a transition, encoded once with a token and once without, for any number of clients."""

    def __init__(self, transition: Transition, frame: AnyFrame, token: ResumeToken) -> None:
        self.transition = transition
        self.dag_id = transition.dag_id
        self.frame_type = type_of(frame)
        self.content = Resource.of_content(self.dag_id, self.frame_type)
        self.wire = Wire(frame)
        self.wire_with_cursor = Wire(frame, token)

    @cached_property
    def without_values(self) -> _EncodedTransition:
        """The same for callers that may not read values."""
        if self.content is None:
            return self
        (frame,), token = redact_inputs(redact([self.wire.frame])), self.wire_with_cursor.token
        assert token is not None, "it is created with one"
        return _EncodedTransition(self.transition, frame, token)


class _GroupBatch(NamedTuple):
    """The transitions of one batch that match the filter of a group."""

    transitions: Sequence[_EncodedTransition]
    bookmark: Wire
    has_news: bool
    """Whether the batch had any transitions at all."""

    dispatched_at: float


class _FirehoseGroup:
    """The subscriptions with the same filter and the same permissions."""

    def __init__(self, transition_filter: Filter, permissions: ReadPermissions | None, now: float) -> None:
        self.transition_filter = transition_filter
        self.permissions = permissions
        self.subscriptions: set[Subscription] = set()
        # The batch that waits for permissions and all later ones, each with the subscriptions at the time it came.
        self._pending: list[tuple[_GroupBatch, set[Subscription]]] = []
        self._published_at = now

    @property
    def is_waiting(self) -> bool:
        """Whether batches wait for permissions."""
        return bool(self._pending)

    @property
    def key(self) -> tuple[Filter, ReadPermissions | None]:
        return self.transition_filter, self.permissions

    def enqueue(self, encoded: Sequence[_EncodedTransition], bookmark: Wire, now: float) -> None:
        """Publish a batch, after those that wait for permissions."""
        matching = [one for one in encoded if self.transition_filter.matches(one.transition, one.frame_type)]
        batch = _GroupBatch(matching, bookmark, bool(encoded), now)
        permissions = self._permissions_for(matching)
        if not self._pending and None not in permissions.values():
            self._publish(batch, permissions, self.subscriptions)
            return
        self._pending.append((batch, self.subscriptions.copy()))
        if len(self._pending) == 1:
            self._publish_ready()
        elif self._is_overdue(now) or self._is_overfull():
            self.disconnect(CloseCode.UNAVAILABLE, "Airflow can't be asked which DAGs you may read")

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """Disconnect all clients, and drop all pending batches."""
        self._pending.clear()
        for subscription in self.subscriptions:
            subscription.disconnect(code, reason)

    def publish_reset(self, wires: list[Wire]) -> None:
        """Publish a reset in place of all pending batches."""
        self._pending.clear()
        for subscription in self.subscriptions:
            subscription.push(wires)

    def _is_overdue(self, now: float) -> bool:
        """Whether the oldest pending batch has waited for too long."""
        assert self.permissions is not None, "without permissions nothing waits"
        oldest, _ = self._pending[0]
        return now - oldest.dispatched_at > self.permissions.max_wait

    def _is_overfull(self) -> bool:
        return sum(len(batch.transitions) for batch, _ in self._pending) > MAX_PENDING_TRANSITIONS

    def _publish_ready(self) -> None:
        """Publish pending batches up to the first one whose permissions must be looked up."""
        if not self.subscriptions:
            self._pending.clear()
        while self._pending:
            batch, recipients = self._pending[0]
            permissions = self._permissions_for(batch.transitions)
            if unknown := {resource for resource, may_read in permissions.items() if may_read is None}:
                assert self.permissions is not None, "without permissions everything is known"
                self.permissions.request_decision(unknown, self._publish_ready)
                return
            del self._pending[0]
            # Those that joined later have the batch behind them; those that have left get nothing.
            self._publish(batch, permissions, recipients & self.subscriptions)

    def _permissions_for(self, encoded: Collection[_EncodedTransition]) -> PermissionMap:
        """Return the permissions that a batch needs. None are needed if everything may be read."""
        if self.permissions is None:
            return {}
        known = {
            resource: self.permissions.may_read(resource) for resource in {Resource(one.dag_id) for one in encoded}
        }
        for content in {one.content for one in encoded if one.content is not None}:
            # The content of a DAG that may not be read is not looked up: nothing of that DAG is sent.
            if known[Resource(content.dag_id)] is not False:
                known[content] = self.permissions.may_read(content)
        return known

    def _publish(self, batch: _GroupBatch, permissions: PermissionMap, recipients: Iterable[Subscription]) -> None:
        visible = _select_visible(
            batch.transitions, self.transition_filter, None if self.permissions is None else permissions
        )
        if visible:
            wires = _wires_of(visible)
        elif batch.has_news and batch.dispatched_at - self._published_at >= BOOKMARK_SECONDS:
            wires = [batch.bookmark]
        else:
            return
        self._published_at = batch.dispatched_at
        for subscription in recipients:
            subscription.push(wires)


class Firehose:
    """The subscriptions of many runs."""

    def __init__(self) -> None:
        self._groups: dict[tuple[Filter, ReadPermissions | None], _FirehoseGroup] = {}
        self._group_of: dict[Subscription, _FirehoseGroup] = {}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def wants_output_of(self, transition: Transition) -> bool:
        """Whether any subscription wants the output that a row announces."""
        return any(wanted.wants_output and wanted.matches_ids(transition) for wanted, _ in self._groups)

    def output_filters(self) -> set[Filter]:
        """Return the filters that include output."""
        return {wanted for wanted, _ in self._groups if wanted.wants_output}

    def add(
        self,
        wanted: Filter,
        subscription: Subscription,
        position: JournalPosition,
        now: float,
        permissions: ReadPermissions | None = None,
    ) -> None:
        """Add a subscription. The position is queued for it at once, so that the client can resume there.

        Args:
            wanted: Which transitions it gets.
            subscription: Where they are pushed.
            position: How far the journal has been read.
            now: The time in seconds, by any steady clock.
            permissions: What the caller may read; `None` for everything.
        """
        self._add_to_group(wanted, permissions, subscription, now)
        subscription.push([Wire(Ping(), ResumeToken(position))])

    def update_permissions(self, subscription: Subscription, permissions: ReadPermissions | None, now: float) -> None:
        """Apply other permissions from the next batch on. A client with pending batches is disconnected."""
        group = self._group_of[subscription]
        if group.is_waiting:
            # The pending batches wait for what the earlier credential may read.
            subscription.disconnect(CloseCode.ACCESS_CHANGED, "What you may see has changed")
            return
        self.remove(subscription)
        self._add_to_group(group.transition_filter, permissions, subscription, now)

    def remove(self, subscription: Subscription) -> None:
        """Remove a subscription, and its group with the last one. A second call does nothing."""
        group = self._group_of.pop(subscription, None)
        if group is None:
            return
        group.subscriptions.discard(subscription)
        if not group.subscriptions:
            del self._groups[group.key]

    def dispatch(self, transitions: Iterable[Transition], position: JournalPosition, now: float) -> None:
        """Publish a batch to the groups that it matches, and the position now and then to the others.

        An exception in the batch costs a reset, and one in a group its connections; neither is raised.
        """
        if not self._groups:
            return
        try:
            encoded = _encode(transitions, position)
        except Exception:
            log.exception("Cannot make the frames of a batch; streams of many runs are resynced")
            self.resync("transitions_lost", position)
            return
        bookmark = Wire(Ping(), ResumeToken(position))
        for group in list(self._groups.values()):
            try:
                group.enqueue(encoded, bookmark, now)
            except Exception:
                log.exception("Cannot send a batch to a group of streams of many runs; their connections are closed")
                group.disconnect(CloseCode.INTERNAL, "The server lost the state of this stream")

    def resync(self, reason: ResetReason, position: JournalPosition) -> None:
        """Reset all subscriptions: transitions may be missing."""
        wires = reset_wires(reason, position)
        for group in self._groups.values():
            group.publish_reset(wires)

    def _add_to_group(
        self, wanted: Filter, permissions: ReadPermissions | None, subscription: Subscription, now: float
    ) -> None:
        group = self._groups.get((wanted, permissions))
        if group is None:
            group = self._groups[wanted, permissions] = _FirehoseGroup(wanted, permissions, now)
        group.subscriptions.add(subscription)
        self._group_of[subscription] = group


def reset_wires(reason: ResetReason, position: JournalPosition) -> list[Wire]:
    """Return a reset with the position at which the stream continues."""
    return [Wire(Reset(reason=reason), ResumeToken(position))]


def required_resources(wanted: Filter, history: Iterable[Transition]) -> set[Resource]:
    """Return what a caller must be allowed to read to get everything of a history that matches a filter."""
    matching = [
        one
        for one in history
        if wanted.matches_ids(one) and (one.kind is not TransitionKind.INPUT or wanted.wants_inputs)
    ]
    return {
        *(Resource(one.dag_id) for one in matching),
        *(Resource(one.dag_id, output=True) for one in matching if is_output(one)),
        *(Resource(one.dag_id, inputs=True) for one in matching if one.kind is TransitionKind.INPUT),
    }


def replay(wanted: Filter, gap: Gap, readable: Collection[Resource] | None = None) -> list[Wire]:
    """Return what a client has missed.

    Args:
        wanted: Which transitions it gets.
        gap: What to replay. Later rows follow live.
        readable: Which of `required_resources` the caller may read; `None` for all.
    """
    encoded = _encode(gap.rows, gap.position)
    matching = [one for one in encoded if wanted.matches(one.transition, one.frame_type)]
    visible = _select_visible(matching, wanted, None if readable is None else dict.fromkeys(readable, True))
    resumed = Resumed(since=str(gap.token))
    return [Wire(resumed), *_wires_of(visible)] if visible else [Wire(resumed, ResumeToken(gap.position))]


def _select_visible(
    encoded: Sequence[_EncodedTransition], wanted: Filter, permissions: PermissionMap | None
) -> Sequence[_EncodedTransition]:
    """Return the transitions that a caller may see, with the values that it may read; `None` permits everything."""
    if permissions is not None:
        encoded = [
            one if one.content is None or permissions.get(one.content) else one.without_values
            for one in encoded
            if permissions.get(Resource(one.dag_id))
        ]
    if not wanted.redacted and not wanted.inputs_redacted:
        return encoded
    return [one.without_values if wanted.withholds(one.frame_type) else one for one in encoded]


def _wires_of(encoded: Sequence[_EncodedTransition]) -> list[Wire]:
    """Return the frames of transitions, of which there is at least one. The last one carries the position."""
    return [*(one.wire for one in encoded[:-1]), encoded[-1].wire_with_cursor]


def _encode(transitions: Iterable[Transition], position: JournalPosition) -> list[_EncodedTransition]:
    token = ResumeToken(position)
    return [_EncodedTransition(one, frame, token) for one in transitions for frame in frames_of(one)]
