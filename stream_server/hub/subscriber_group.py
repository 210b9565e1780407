"""The subscriptions of a watched run that get the same frames. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stream_server.domain.outcome import ReturnValues, WatchOptions
from stream_server.domain.outcome_tracker import OutcomeTracker
from stream_server.domain.run_state import RetractionReason, RunState
from stream_server.hub.redaction import redact, redact_inputs
from stream_server.hub.subscription import Subscription
from stream_server.protocol.cursor import JournalPosition, ResumeToken
from stream_server.protocol.frames import AnyFrame, Reset, ResetReason, Waiting
from stream_server.protocol.output_frames import OutputFrame
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
            shared = [frame for frame in shared if not isinstance(frame, OutputFrame)]
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
        visible = redact_inputs(visible) if self.options.redact_inputs else visible
        return encode_frames(visible, token) if visible else []

    def resume_token(self, position: JournalPosition) -> ResumeToken:
        """Return the token of a client that has received all that was published up to a position."""
        tracker, options = self.tracker, self.options
        return ResumeToken(
            position, tracker.known_outcome, options.redact_values, options.redact_inputs, tracker.has_ended
        )

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


def encode_frames(frames: Sequence[AnyFrame], token: ResumeToken) -> list[Wire]:
    """Encode frames, of which there is at least one. The last one carries the token."""
    wires = [Wire(frame) for frame in frames]
    wires[-1].token = token
    return wires
