"""One watched run: its state, kept current, and its subscriptions, grouped by their options.

Pure: the hub passes in what happened, and a feed pushes the frames that follow to its subscriptions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stream_server.domain.outcome import ReturnValues, WatchOptions
from stream_server.domain.replay import Gap, has_outcome, replay_run
from stream_server.domain.run_state import RetractionReason, RunKey, RunState
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.errors import UnknownTask
from stream_server.hub.subscriber_group import GroupKey, SubscriberGroup
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumeToken, SentOutcome
from stream_server.protocol.frames import AnyFrame, ResetReason, Waiting
from stream_server.protocol.wire import Wire

MAX_JUDGEMENTS: int | None = 300
"""Tasks of a prediction that the event loop judges in one step. It takes up to 10 µs for each."""


class _Batch(NamedTuple):
    """Transitions, and the position that they lead to."""

    transitions: Sequence[Transition]
    position: JournalPosition


class _Unpublished(NamedTuple):
    """What was applied, and is published when the prediction is up to date."""

    shared: Sequence[AnyFrame]
    retraction: RetractionReason | None
    position: JournalPosition


class RunFeed:
    """One watched run.

    A feed is loading until `start` is called, and again after `restart_loading`. Transitions that are applied meanwhile
    wait for `start`.

    The prediction of a large run may take long after a batch. Then the feed `is_updating`: the owner calls `update`
    again and again, between other work of the event loop. Batches that are applied meanwhile wait. Whatever else needs
    the state or the groups finishes the update first.
    """

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.run_state: RunState | None = None
        self.groups: dict[GroupKey, SubscriberGroup] = {}
        self.changes = 0
        """Counts loads and batches."""

        self._loaded_at: JournalPosition | None = None
        self._pending: list[Transition] = []
        self._unpublished: _Unpublished | None = None
        self._waiting_batches: deque[_Batch] = deque()

    @property
    def is_updating(self) -> bool:
        """Whether `update` must be called."""
        return self._unpublished is not None or bool(self._waiting_batches)

    @property
    def subscriptions(self) -> list[Subscription]:
        """The subscriptions of all groups."""
        return [one for group in self.groups.values() for one in group.subscriptions]

    @property
    def wanted_tasks(self) -> frozenset[str]:
        """Tasks whose return values some group needs."""
        needed: frozenset[str] = frozenset()
        for group in self.groups.values():
            needed |= group.tracker.values_needed
        return needed

    def start(self, run: RunState, loaded_at: JournalPosition) -> None:
        """Take over a state that was loaded, and apply the pending transitions that it does not include."""
        self.changes += 1
        pending, self._pending = self._pending, []
        self.run_state, self._loaded_at = run, loaded_at
        for transition in self._unseen(pending):
            run.apply(transition)
        # No subscription has received the output that these transitions retract.
        run.take_retraction()

    def restart_loading(self) -> None:
        """Drop the state, which may be wrong, and wait for the next `start`."""
        self.run_state = None
        self._pending = []
        self._unpublished = None
        self._waiting_batches.clear()

    def is_outdated_by(self, transitions: Sequence[Transition]) -> bool:
        """Whether a batch has a transition after which the run must be read again. A deleted run cannot be read."""
        run = self.run_state
        if run is None:
            return False
        decisive = [one for one in transitions if one.kind is TransitionKind.RUN_DELETED or run.is_outdated_by(one)]
        unseen = self._unseen(decisive) if decisive else ()
        return bool(unseen) and all(transition.kind is not TransitionKind.RUN_DELETED for transition in unseen)

    def is_covered_by(self, position: JournalPosition) -> bool:
        """Whether everything in the state was visible at a position."""
        return self.run_state is not None and self._loaded_at is not None and position.covers(self._loaded_at)

    def apply(self, transitions: Sequence[Transition], position: JournalPosition) -> None:
        """Apply the transitions of one batch, and publish what follows."""
        if self.run_state is None:
            self._pending.extend(transitions)
        elif self.is_updating:
            self._waiting_batches.append(_Batch(transitions, position))
        else:
            self._apply(self.run_state, _Batch(transitions, position))

    def update(self, at_most: int | None = MAX_JUDGEMENTS) -> None:
        """Judge some tasks. If the prediction is up to date then, publish, and apply the next batch that waits."""
        run, unpublished = self.run_state, self._unpublished
        if run is None:
            return
        if unpublished is not None:
            if not run.advance_prediction(at_most):
                return
            self._unpublished = None
            self._publish(run, unpublished)
        if self._waiting_batches:
            self._apply(run, self._waiting_batches.popleft())

    def _finish_update(self) -> None:
        while self.is_updating:
            self.update(at_most=None)

    def _apply(self, run: RunState, batch: _Batch) -> None:
        self.changes += 1
        shared = [frame for transition in self._unseen(batch.transitions) for frame in run.apply(transition)]
        unpublished = _Unpublished(shared, run.take_retraction(), self._own_position(batch.position))
        if run.is_large and not run.advance_prediction(MAX_JUDGEMENTS):
            self._unpublished = unpublished
        else:
            self._publish(run, unpublished)

    def _publish(self, run: RunState, unpublished: _Unpublished) -> None:
        shared, retraction, position = unpublished
        for group in self.groups.values():
            group.apply(run, shared, position, retraction=retraction)
        self._settle_groups()

    def set_waiting(self, waiting: Waiting | None, position: JournalPosition) -> None:
        """Publish why the run does not proceed, or that the reason does not hold any more, if that has changed."""
        self._finish_update()
        if self.run_state is None or waiting == self.run_state.waiting:
            return
        self.run_state.waiting = waiting
        frame = waiting or Waiting(dag_id=self.key.dag_id, run_id=self.key.run_id, reason=None)
        for group in self.groups.values():
            group.publish_waiting(frame, self._own_position(position))

    def add_values(self, task_ids: frozenset[str], values: ReturnValues, position: JournalPosition) -> None:
        """Continue with the return values of some tasks, and publish what follows."""
        self._finish_update()
        if self.run_state is None:
            return
        for group in list(self.groups.values()):
            group.add_values(self.run_state, task_ids, values, self._own_position(position))
        self._settle_groups()

    def add_subscription(
        self,
        options: WatchOptions,
        subscription: Subscription,
        position: JournalPosition,
        token: ResumeToken | None = None,
    ) -> tuple[SubscriberGroup, JournalPosition]:
        """Add a subscription. What is known is queued for it at once.

        Args:
            options: What the client watches.
            subscription: Where frames are pushed.
            position: How far the journal has been read.
            token: Where the client resumes. Then only the outcome is queued, if the client does not know it.
                `find_reset_reason` has found none.

        Returns:
            Its group, and the position that the state of the feed covers.

        Raises:
            UnknownTask: The options name a task that the DAG does not have.
        """
        assert self.run_state is not None, "subscriptions are added only after the feed has started"
        self._finish_update()
        self._require_tasks(self.run_state, options)
        covered = self._own_position(position)
        group = self._find_or_add_group(options, self.run_state, None if token is None else token.sent_outcome)
        group.add(subscription, self.run_state, covered, token)
        self._settle_groups()
        return group, covered

    def find_reset_reason(self, options: WatchOptions, token: ResumeToken) -> ResetReason | None:
        """Return why a client cannot continue after what it has received, whatever it has missed.

        Raises:
            UnknownTask: The options name a task that the DAG does not have.
        """
        assert self.run_state is not None, "the feed has started"
        self._finish_update()
        self._require_tasks(self.run_state, options)
        # It may now read what it was sent without: those frames are not sent again.
        if token.lacks_values and not options.redact_values:
            has_output = options.include_output and bool(self.run_state.output.frames)
            if token.sent_outcome == "result" or has_output:
                return "access_changed"
        if token.lacks_inputs and not options.redact_inputs and self.run_state.requests:
            return "access_changed"
        if token.sent_outcome is not None and not has_outcome(self.run_state, options, token.sent_outcome):
            return "revoked"
        return None

    def replay(self, group: SubscriberGroup, gap: Gap, *, before_creation: bool) -> list[Wire] | None:
        """Return what a client has missed; `None` if something that it has been sent was retracted meanwhile.

        Also `None` while the run is being loaded again. A thread may call this: nothing is changed, and the state is
        only asked for single instances, which may be newer than the gap.

        Args:
            group: The group of the client.
            gap: What to replay. Later rows follow live.
            before_creation: Whether the run did not exist at the client's token.
        """
        run = self.run_state
        if run is None:
            return None
        frames = replay_run(run, group.options, gap, before_creation=before_creation)
        if frames is None:
            return None
        # The outcome is not part of a replay: the token keeps what the client had been sent before.
        options = group.options
        token = ResumeToken(gap.position, gap.token.sent_outcome, options.redact_values, options.redact_inputs)
        return group.encode(frames, token)

    def remove_subscription(self, subscription: Subscription) -> None:
        """Remove a subscription, and its group with the last one."""
        for options, group in list(self.groups.items()):
            group.subscriptions.pop(subscription, None)
            if not group.subscriptions:
                del self.groups[options]

    def resync(self, reason: ResetReason, position: JournalPosition) -> None:
        """Reset all subscriptions, and send them what is known now."""
        assert self.run_state is not None, "the feed has started again"
        self._finish_update()
        for group in list(self.groups.values()):
            group.resync(self.run_state, reason, self._own_position(position))
        self._settle_groups()

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """Disconnect all subscriptions."""
        for subscription in self.subscriptions:
            subscription.disconnect(code, reason)
        self.groups.clear()
        self._unpublished = None
        self._waiting_batches.clear()

    def _unseen(self, transitions: Iterable[Transition]) -> list[Transition]:
        """Return the transitions that the loaded state does not include."""
        assert self._loaded_at is not None, "the feed has started"
        return [transition for transition in transitions if not self._loaded_at.is_visible(transition.txid)]

    def _own_position(self, position: JournalPosition) -> JournalPosition:
        """Return the position that the state covers: where it was loaded, until the tail has got there too."""
        assert self._loaded_at is not None, "the feed has started"
        return position if position.covers(self._loaded_at) else self._loaded_at

    def _require_tasks(self, run: RunState, options: WatchOptions) -> None:
        known = run.task_ids
        for task_id in options.result_tasks:
            if task_id not in known:
                raise UnknownTask(self.key.dag_id, task_id, sorted(known))

    def _find_or_add_group(
        self, options: WatchOptions, run: RunState, known_outcome: SentOutcome | None
    ) -> SubscriberGroup:
        key = GroupKey(options)
        group = self.groups.get(key)
        if known_outcome == "result" and (group is None or group.tracker.known_outcome != "result"):
            key = GroupKey(options, has_result=True)
            group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = SubscriberGroup(options, run, has_result=key.has_result)
        return group

    def _settle_groups(self) -> None:
        """Drop the groups that have sent their `end`, and merge those whose clients know the same now.

        A later subscription gets a new group, and everything again.
        """
        for key in [key for key, group in self.groups.items() if group.tracker.has_ended]:
            del self.groups[key]
        for key in [key for key in self.groups if key.has_result]:
            self._merge_group(key, self.groups[key])

    def _merge_group(self, key: GroupKey, group: SubscriberGroup) -> None:
        """Merge a group whose clients know the result with that of all others, as soon as there is no difference."""
        others = self.groups.get(GroupKey(key.options))
        if others is not None and others.tracker.result_versions == group.tracker.result_versions:
            del self.groups[key]
            others.take_over(group)
        elif others is None and not group.tracker.result_versions:
            del self.groups[key]
            self.groups[GroupKey(key.options)] = group
