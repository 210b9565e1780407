"""One watched run: its state, kept current, and its subscriptions, grouped by their options.

Pure: the hub passes in what happened, and a feed pushes the frames that follow to its subscriptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stream_server.domain.outcome import ReturnValues, WatchOptions
from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.domain.replay import Gap, has_outcome, replay_run
from stream_server.domain.run_state import RetractionReason, RunKey, RunState
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.errors import UnknownTask
from stream_server.hub.redaction import redact
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumeToken, SentOutcome
from stream_server.protocol.frames import AnyFrame, Chunk, Progress, Reset, ResetReason, Waiting
from stream_server.protocol.wire import Wire


class SubscriberGroup:
    """The subscriptions of a run with the same options. All of them get the same frames, encoded once."""

    def __init__(self, options: WatchOptions, run: RunState, *, has_result: bool = False) -> None:
        self.tracker = OutcomeTracker(options, run.info.clear_number)
        if has_result:
            self.tracker.assume_result(run)
        # What it returns is among the first frames of each subscription.
        self.tracker.update(run)
        # Ordered by arrival, which is the order in memory of what belongs to them: iteration is faster that way.
        self.subscriptions: dict[Subscription, None] = {}
        # What a new subscription gets first, until the next publish.
        self._initial_wires: list[Wire] | None = None

    @property
    def options(self) -> WatchOptions:
        return self.tracker.options

    def add(
        self, subscription: Subscription, run: RunState, position: JournalPosition, token: ResumeToken | None
    ) -> None:
        """Add a subscription, and queue what is known; with a token only what the client gets beside its replay."""
        self._join(subscription)
        if token is None:
            # Those that join between two changes share it.
            if self._initial_wires is None:
                self._initial_wires = self.encode(self.tracker.initial_frames(run), self.resume_token(position))
            subscription.push(self._initial_wires)
            return
        waiting = () if run.waiting is None else (run.waiting,)
        last = [*waiting, *self.tracker.last_frames(token.sent_outcome)]
        if wires := self.encode(last, self.resume_token(position)):
            subscription.push(wires)

    def take_over(self, other: SubscriberGroup) -> None:
        """Add the subscriptions of a group that were sent the same as those of this one."""
        for subscription in other.subscriptions:
            self._join(subscription)

    def apply(
        self,
        run: RunState,
        shared: Sequence[AnyFrame],
        position: JournalPosition,
        *,
        retraction: RetractionReason | None = None,
    ) -> None:
        """Publish the frames that all groups of the run get, then those that follow for this one.

        Args:
            run: The state after these frames.
            shared: Frames for all groups. Output is left out if it was not asked for.
            position: What the frames cover.
            retraction: Why output of a task was retracted, if it was.
        """
        if not self.options.include_output:
            shared = [frame for frame in shared if not isinstance(frame, (Chunk, Progress))]
        self._publish([*shared, *self.tracker.update(run, retraction)], position)

    def publish_waiting(self, frame: Waiting, position: JournalPosition) -> None:
        """Publish why the run does not proceed. It changes nothing else."""
        self._publish([frame], position)

    def add_values(
        self, run: RunState, task_ids: frozenset[str], values: ReturnValues, position: JournalPosition
    ) -> None:
        """Continue with return values, if they include all that are needed here."""
        if self.tracker.values_needed and self.tracker.values_needed <= task_ids:
            self._publish(self.tracker.add_values(run, task_ids, values), position)

    def resync(self, run: RunState, reason: ResetReason, position: JournalPosition) -> None:
        """Reset all subscriptions, and send them what is known now."""
        reset = Reset(dag_id=run.key.dag_id, run_id=run.key.run_id, reason=reason)
        self.tracker.restart(run)
        self.apply(run, [reset, *self.tracker.initial_frames(run)], position)

    def encode(self, frames: Sequence[AnyFrame], token: ResumeToken) -> list[Wire]:
        """Encode frames as this group may see them. The last one carries the token."""
        visible = redact(frames) if self.options.redact_values else frames
        return encode_frames(visible, token) if visible else []

    def resume_token(self, position: JournalPosition) -> ResumeToken:
        """Return the token of a client that has received all that was published up to a position."""
        tracker = self.tracker
        return ResumeToken(position, tracker.known_outcome, tracker.options.redact_values, tracker.has_ended)

    def _join(self, subscription: Subscription) -> None:
        self.subscriptions[subscription] = None
        subscription.tracker = self.tracker

    def _publish(self, frames: Sequence[AnyFrame], position: JournalPosition) -> None:
        self._initial_wires = None
        if self.subscriptions and (wires := self.encode(frames, self.resume_token(position))):
            for subscription in self.subscriptions:
                subscription.push(wires)


class GroupKey(NamedTuple):
    """Identifies a subscriber group of a run."""

    options: WatchOptions
    has_result: bool = False
    """Whether the clients got the result on earlier connections, while the group of all others has yet to read it. The
    groups are merged as soon as the result is sent to the others, or retracted."""


class RunFeed:
    """One watched run.

    A feed is loading until `start` is called, and again after `restart_loading`. Transitions that are applied meanwhile
    wait for `start`.
    """

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.run_state: RunState | None = None
        self.groups: dict[GroupKey, SubscriberGroup] = {}
        self.changes = 0
        """Counts loads and batches."""

        self._loaded_at: JournalPosition | None = None
        self._pending: list[Transition] = []

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
            return
        self.changes += 1
        shared = [frame for transition in self._unseen(transitions) for frame in self.run_state.apply(transition)]
        retraction = self.run_state.take_retraction()
        covered = self._own_position(position)
        for group in self.groups.values():
            group.apply(self.run_state, shared, covered, retraction=retraction)
        self._settle_groups()

    def set_waiting(self, waiting: Waiting | None, position: JournalPosition) -> None:
        """Publish why the run does not proceed, or that the reason does not hold any more, if that has changed."""
        if self.run_state is None or waiting == self.run_state.waiting:
            return
        self.run_state.waiting = waiting
        frame = waiting or Waiting(dag_id=self.key.dag_id, run_id=self.key.run_id, reason=None)
        for group in self.groups.values():
            group.publish_waiting(frame, self._own_position(position))

    def add_values(self, task_ids: frozenset[str], values: ReturnValues, position: JournalPosition) -> None:
        """Continue with the return values of some tasks, and publish what follows."""
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
        self._require_tasks(self.run_state, options)
        if token.is_redacted and not options.redact_values:
            # It may now read values that it was sent without: those frames are not sent again.
            has_output = options.include_output and bool(self.run_state.output.frames)
            if token.sent_outcome == "result" or has_output:
                return "access_changed"
        if token.sent_outcome is not None and not has_outcome(self.run_state, options, token.sent_outcome):
            return "revoked"
        return None

    def replay(self, group: SubscriberGroup, gap: Gap, *, before_creation: bool) -> list[Wire] | None:
        """Return what a client has missed; `None` if something that it has been sent was retracted meanwhile.

        Args:
            group: The group of the client.
            gap: What to replay. Later rows follow live.
            before_creation: Whether the run did not exist at the client's token.
        """
        assert self.run_state is not None, "the feed has started"
        frames = replay_run(self.run_state, group.options, gap, before_creation=before_creation)
        if frames is None:
            return None
        # The outcome is not part of a replay: the token keeps what the client had been sent before.
        token = ResumeToken(gap.position, gap.token.sent_outcome, group.options.redact_values)
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
        for group in list(self.groups.values()):
            group.resync(self.run_state, reason, self._own_position(position))
        self._settle_groups()

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """Disconnect all subscriptions."""
        for subscription in self.subscriptions:
            subscription.disconnect(code, reason)
        self.groups.clear()

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


def encode_frames(frames: Sequence[AnyFrame], token: ResumeToken) -> list[Wire]:
    """Encode frames, of which there is at least one. The last one carries the token."""
    wires = [Wire(frame) for frame in frames]
    wires[-1].token = token
    return wires
