"""One watched run: its state, kept current, and those who watch it, grouped by what they asked.

Pure: the hub says what has happened, a feed pushes what follows to its subscriptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stream_server.domain.answer import OutcomeTracker
from stream_server.domain.outcome import ReturnValues, WatchOptions, select_result_tasks
from stream_server.domain.run_state import FINAL_RUN_STATES, RETRACTING_STATES, RetractionReason, RunKey, RunState
from stream_server.domain.transition import Transition, TransitionKind
from stream_server.domain.transition_frames import is_output, output_frames
from stream_server.errors import UnknownTask
from stream_server.hub.redaction import redact
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import JournalPosition, ResumeToken, SentOutcome
from stream_server.protocol.frames import AnyFrame, Chunk, Progress, Reset, ResetReason, Result, Resumed, RunInfo
from stream_server.protocol.wire import Wire

UNKNOWN_RUN = RunInfo(state=None, queued_at=None, start_date=None, end_date=None, clear_number=0)
"""Of a run of which nothing is known yet."""


class SubscriberGroup:
    """The watchers of one question."""

    def __init__(self, answer: OutcomeTracker) -> None:
        self.tracker = answer
        self.subscriptions: dict[Subscription, None] = {}
        """In the order in which they have come, in which what belongs to them lies in memory."""

        self.wanted_tasks: frozenset[str] = frozenset()
        """Tasks whose return values must be read before there is more to tell."""

        self._initial_wires: list[Wire] | None = None

    def apply(
        self,
        run: RunState,
        shared: Sequence[AnyFrame],
        cursor: JournalPosition,
        *,
        unsaid: RetractionReason | None = None,
    ) -> None:
        """Advance the answer, and push what all of the run's watchers see, then what only these do.

        Args:
            run: The run.
            shared: What all see, but for what tasks say where that is not asked for.
            cursor: How far that goes.
            unsaid: Why something that a task has said is worth nothing any more.
        """
        step = self.tracker.update(run, unsaid)
        self.wanted_tasks = frozenset(step.values_needed)
        if not self.tracker.options.include_output:
            shared = [frame for frame in shared if not isinstance(frame, (Chunk, Progress))]
        self.publish([*shared, *step.frames], cursor)

    def add_values(
        self, run: RunState, task_ids: frozenset[str], values: ReturnValues, cursor: JournalPosition
    ) -> None:
        """Go on with return values, if they are all that is wanted."""
        if not self.wanted_tasks or not self.wanted_tasks <= task_ids:
            return
        step = self.tracker.add_values(run, task_ids, values)
        self.wanted_tasks = frozenset(step.values_needed)
        self.publish(step.frames, cursor)

    def publish(self, frames: Sequence[AnyFrame], cursor: JournalPosition) -> None:
        """Push frames to every watcher; the last of them carries the cursor."""
        self._initial_wires = None
        if self.subscriptions and (wires := self.encode(frames, self.resume_token(cursor))):
            for subscription in self.subscriptions:
                subscription.push(wires)

    def initial_wires(self, run: RunState, cursor: JournalPosition) -> list[Wire]:
        """Return what a new watcher must see first; made once for all who join before the next change."""
        if self._initial_wires is None:
            self._initial_wires = self.encode(self.tracker.initial_frames(run), self.resume_token(cursor))
        return self._initial_wires

    def encode(self, frames: Sequence[AnyFrame], token: ResumeToken) -> list[Wire]:
        """Put on the wire what of frames may be told; the last of them carries the place."""
        told = redact(frames) if self.tracker.options.redact_values else frames
        return encode_frames(told, token) if told else []

    def resume_token(self, position: JournalPosition) -> ResumeToken:
        """Return the token of a client that has received all frames of the group up to a position."""
        tracker = self.tracker
        outcome: SentOutcome | None = None
        if tracker.sent_outcome is not None:
            outcome = "result" if isinstance(tracker.sent_outcome, Result) else "failure"
        return ResumeToken(position, outcome, tracker.options.redact_values, tracker.has_ended)


class RunFeed:
    """One watched run.

    A feed is loading until `start` has been called; transitions wait for that.
    """

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.run_state: RunState | None = None
        self.groups: dict[WatchOptions, SubscriberGroup] = {}
        self._loaded_at: JournalPosition | None = None
        self._pending: list[Transition] = []

    @property
    def subscriptions(self) -> list[Subscription]:
        """All who watch."""
        return [one for channel in self.groups.values() for one in channel.subscriptions]

    @property
    def wanted_tasks(self) -> frozenset[str]:
        """Tasks whose return values some channel wants."""
        return frozenset().union(*(channel.wanted_tasks for channel in self.groups.values()))

    def start(self, run: RunState, loaded_at: JournalPosition) -> None:
        """Go on from what the database said, with what has come since."""
        waiting, self._pending = self._pending, []
        self.run_state, self._loaded_at = run, loaded_at
        for transition in self._unseen(waiting):
            run.apply(transition)
        run.take_retraction()

    def restart_loading(self) -> None:
        """Be loading again: what was known of the run is worth nothing any more."""
        self.run_state = None
        self._pending = []

    def is_covered_by(self, cursor: JournalPosition) -> bool:
        """Tell whether all that is known of the run was visible at a cursor."""
        return self.run_state is not None and self._loaded_at is not None and cursor.covers(self._loaded_at)

    def apply(self, transitions: Sequence[Transition], cursor: JournalPosition) -> None:
        """Follow the transitions of one batch, and push what follows."""
        if self.run_state is None:
            self._pending.extend(transitions)
            return
        shared = [frame for transition in self._unseen(transitions) for frame in self.run_state.apply(transition)]
        unsaid = self.run_state.take_retraction()
        for channel in list(self.groups.values()):
            channel.apply(self.run_state, shared, self._position(cursor), unsaid=unsaid)
        self._drop_ended_groups()

    def add_values(self, task_ids: frozenset[str], values: ReturnValues, cursor: JournalPosition) -> None:
        """Go on with the return values of some tasks, and push what follows."""
        if self.run_state is not None:
            for channel in list(self.groups.values()):
                channel.add_values(self.run_state, task_ids, values, self._position(cursor))
            self._drop_ended_groups()

    def add_subscription(
        self, question: WatchOptions, subscription: Subscription, cursor: JournalPosition, *, opening: bool = True
    ) -> tuple[SubscriberGroup, JournalPosition]:
        """Let somebody watch. What is known is due to him at once, unless he shall be told in another way.

        Returns:
            Those who ask the same, and how far what is known has come.

        Raises:
            UnknownTask: The question names a task that the DAG does not have.
        """
        assert self.run_state is not None, "whoever joins has waited for the feed to start"
        known = self.run_state.task_ids
        for task_id in question.result_tasks:
            if task_id not in known:
                raise UnknownTask(self.key.dag_id, task_id, sorted(known))
        channel = self.groups.get(question)
        position = self._position(cursor)
        if channel is None:
            channel = self.groups[question] = SubscriberGroup(
                OutcomeTracker(question, self.run_state.info.clear_number)
            )
            channel.subscriptions[subscription] = None
            channel.apply(self.run_state, channel.tracker.initial_frames(self.run_state) if opening else [], position)
            self._drop_ended_groups()
        else:
            channel.subscriptions[subscription] = None
            if opening:
                subscription.push(channel.initial_wires(self.run_state, position))
            elif channel.tracker.sent_outcome is not None:
                subscription.push(channel.encode([channel.tracker.sent_outcome], channel.resume_token(position)))
        return channel, position

    def reveals(self, question: WatchOptions, since: ResumeToken) -> bool:
        """Tell whether a client may read something now that has been told to him without its values."""
        assert self.run_state is not None, "the feed has started"
        if not since.is_redacted or question.redact_values:
            return False
        return since.sent_outcome == "result" or (question.include_output and bool(self.run_state.output.frames))

    def replay(
        self,
        history: Iterable[Transition],
        channel: SubscriberGroup,
        position: JournalPosition,
        since: ResumeToken,
        *,
        unborn: bool,
    ) -> list[Wire] | None:
        """Tell what has happened to the run between a client's cursor and a position.

        Args:
            history: What the cursor has not seen.
            channel: Those who ask the same.
            position: How far it shall be told; what came later comes by itself.
            since: The client's cursor.
            unborn: Whether the run did not exist at that cursor; then it is told from a snapshot of nothing on.

        Returns:
            `None` where something was taken back of what the client has been told.
        """
        assert self.run_state is not None, "somebody has joined"
        answering = select_result_tasks(self.run_state, channel.tracker.options)
        past = [transition for transition in history if position.is_visible(transition.txid)]
        if since.sent_outcome is not None and any(_may_retract_outcome(transition, answering) for transition in past):
            return None
        if channel.tracker.options.include_output and any(self._retracts_output(transition) for transition in past):
            return None
        # Only for the frames: what they make of the run is known already.
        scratch = RunState(self.key, UNKNOWN_RUN, self.run_state.graph)
        resumed = Resumed(dag_id=self.key.dag_id, run_id=self.key.run_id, since=str(since))
        first = scratch.snapshot(answering) if unborn else resumed
        frames = [frame for transition in past for frame in self._replayed_frames(transition, scratch, channel)]
        withheld = channel.tracker.options.redact_values
        return channel.encode([first, *frames], ResumeToken(position, since.sent_outcome, withheld))

    def remove_subscription(self, subscription: Subscription) -> None:
        """Forget a watcher, and the channel that nobody watches any more."""
        for question, channel in list(self.groups.items()):
            channel.subscriptions.pop(subscription, None)
            if not channel.subscriptions:
                del self.groups[question]

    def resync(self, reason: ResetReason, cursor: JournalPosition) -> None:
        """Tell all watchers to forget what they were told, and tell them what is known now."""
        assert self.run_state is not None, "the feed has started again"
        reset = Reset(dag_id=self.key.dag_id, run_id=self.key.run_id, reason=reason)
        for channel in list(self.groups.values()):
            channel.tracker = OutcomeTracker(channel.tracker.options, self.run_state.info.clear_number)
            channel.apply(
                self.run_state, [reset, *channel.tracker.initial_frames(self.run_state)], self._position(cursor)
            )
        self._drop_ended_groups()

    def disconnect(self, code: CloseCode, reason: str) -> None:
        """End the connection of every watcher."""
        for subscription in self.subscriptions:
            subscription.disconnect(code, reason)
        self.groups.clear()

    def _replayed_frames(
        self, transition: Transition, scratch: RunState, channel: SubscriberGroup
    ) -> Sequence[AnyFrame]:
        """Return the frames that tell a transition of the past."""
        assert self.run_state is not None, "somebody has joined"
        if not is_output(transition):
            return scratch.apply(transition)
        if not channel.tracker.options.include_output:
            return ()
        frames = [frame for frame in output_frames(transition) if self.run_state.is_current(frame)]
        return scratch.output.add_frames(frames, hash(transition.body))[0]

    def _retracts_output(self, transition: Transition) -> bool:
        """Tell whether something was taken back by a transition of the past that a task had said before."""
        assert self.run_state is not None, "somebody has joined"
        if is_output(transition):
            return transition.seq in self.run_state.output.retracting_rows
        return (
            transition.kind is TransitionKind.TASK and transition.had_output and transition.state in RETRACTING_STATES
        )

    def _unseen(self, transitions: Iterable[Transition]) -> list[Transition]:
        assert self._loaded_at is not None, "the feed has started"
        return [transition for transition in transitions if not self._loaded_at.is_visible(transition.txid)]

    def _position(self, cursor: JournalPosition) -> JournalPosition:
        """Return how far this feed's state has come: what it was loaded at, until the tail is there too."""
        assert self._loaded_at is not None, "the feed has started"
        return cursor if cursor.covers(self._loaded_at) else self._loaded_at

    def _drop_ended_groups(self) -> None:
        """Forget channels that have said their last; whoever asks again gets a fresh one."""
        for question, channel in list(self.groups.items()):
            if channel.tracker.has_ended:
                del self.groups[question]


def encode_frames(frames: Sequence[AnyFrame], token: ResumeToken) -> list[Wire]:
    """Put frames on the wire; the last of them carries the token."""
    *others, last = frames
    return [*map(Wire, others), Wire(last, token)]


def _may_retract_outcome(transition: Transition, answering: tuple[str, ...]) -> bool:
    """Tell whether a transition may take back an outcome that was told: a run or a task is cleared, or tried again."""
    if transition.kind is TransitionKind.RUN:
        return transition.previous_state in FINAL_RUN_STATES or transition.state == transition.previous_state
    if transition.kind is not TransitionKind.TASK or transition.previous_state is None:
        return False
    retried = transition.state == "up_for_retry" and transition.task_id in answering
    return retried or transition.state in {None, "restarting"}
