"""One watched run: its state, kept current, and those who watch it, grouped by what they asked.

Pure: the hub says what has happened, a feed pushes what follows to its subscriptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stream_server.domain.answer import Answer
from stream_server.domain.outcome import Question, Values, result_tasks
from stream_server.domain.run_state import RUN_FINAL, UNSAID, RunKey, RunState, Unsaid
from stream_server.domain.transition import Kind, Transition
from stream_server.domain.transition_frames import is_output, tell_output
from stream_server.errors import UnknownTask
from stream_server.hub.redaction import withhold
from stream_server.hub.subscription import Subscription
from stream_server.protocol.close_codes import CloseCode
from stream_server.protocol.cursor import Cursor
from stream_server.protocol.frames import AnyFrame, Chunk, Progress, Reset, ResetReason, Resumed, RunInfo
from stream_server.protocol.wire import Wire, type_of

NOT_BEGUN = RunInfo(state=None, queued_at=None, start_date=None, end_date=None, clear_number=0)
"""Of a run of which nothing is known yet."""


class Channel:
    """The watchers of one question."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.subscriptions: dict[Subscription, None] = {}
        """In the order in which they have come, in which what belongs to them lies in memory."""

        self.wanted: frozenset[str] = frozenset()
        """Tasks whose return values must be read before there is more to tell."""

        self._opening: list[Wire] | None = None

    def tell(self, run: RunState, shared: Sequence[AnyFrame], cursor: Cursor, *, unsaid: Unsaid | None = None) -> None:
        """Advance the answer, and push what all of the run's watchers see, then what only these do.

        Args:
            run: The run.
            shared: What all see, but for what tasks say where that is not asked for.
            cursor: How far that goes.
            unsaid: Why something that a task has said is worth nothing any more.
        """
        step = self.answer.advance(run, unsaid)
        self.wanted = frozenset(step.wanted)
        if not self.answer.question.output:
            shared = [frame for frame in shared if not isinstance(frame, (Chunk, Progress))]
        self.push([*shared, *step.frames], cursor)

    def receive(self, run: RunState, task_ids: frozenset[str], values: Values, cursor: Cursor) -> None:
        """Go on with return values, if they are all that is wanted."""
        if not self.wanted or not self.wanted <= task_ids:
            return
        step = self.answer.receive(run, task_ids, values)
        self.wanted = frozenset(step.wanted)
        self.push(step.frames, cursor)

    def push(self, frames: Sequence[AnyFrame], cursor: Cursor) -> None:
        """Push frames to every watcher; the last of them carries the cursor."""
        self._opening = None
        if self.subscriptions and (wires := self.wires(frames, self.place(cursor))):
            for subscription in self.subscriptions:
                subscription.push(wires)

    def open(self, run: RunState, cursor: Cursor) -> list[Wire]:
        """Return what a new watcher must see first; made once for all who join before the next change."""
        if self._opening is None:
            self._opening = self.wires(self.answer.open(run), self.place(cursor))
        return self._opening

    def wires(self, frames: Sequence[AnyFrame], place: Cursor) -> list[Wire]:
        """Put on the wire what of frames may be told; the last of them carries the place."""
        told = withhold(frames) if self.answer.question.withheld else frames
        return wires_of(told, place) if told else []

    def place(self, cursor: Cursor) -> Cursor:
        """Return a cursor as that of who has been told all that these have been."""
        told = None if self.answer.told is None else type_of(self.answer.told)
        return cursor.of(told, ended=self.answer.ended, withheld=self.answer.question.withheld)


class Feed:
    """One watched run.

    A feed is loading until `start` has been called; transitions wait for that.
    """

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.run: RunState | None = None
        self.channels: dict[Question, Channel] = {}
        self._loaded_at: Cursor | None = None
        self._waiting: list[Transition] = []

    @property
    def subscriptions(self) -> list[Subscription]:
        """All who watch."""
        return [one for channel in self.channels.values() for one in channel.subscriptions]

    @property
    def wanted(self) -> frozenset[str]:
        """Tasks whose return values some channel wants."""
        return frozenset().union(*(channel.wanted for channel in self.channels.values()))

    def start(self, run: RunState, loaded_at: Cursor) -> None:
        """Go on from what the database said, with what has come since."""
        waiting, self._waiting = self._waiting, []
        self.run, self._loaded_at = run, loaded_at
        for transition in self._unseen(waiting):
            run.apply(transition)
        run.take_unsaid()

    def restart(self) -> None:
        """Be loading again: what was known of the run is worth nothing any more."""
        self.run = None
        self._waiting = []

    def is_behind(self, cursor: Cursor) -> bool:
        """Tell whether all that is known of the run was visible at a cursor."""
        return self.run is not None and self._loaded_at is not None and cursor.covers(self._loaded_at)

    def apply(self, transitions: Sequence[Transition], cursor: Cursor) -> None:
        """Follow the transitions of one batch, and push what follows."""
        if self.run is None:
            self._waiting.extend(transitions)
            return
        shared = [frame for transition in self._unseen(transitions) for frame in self.run.apply(transition)]
        unsaid = self.run.take_unsaid()
        for channel in list(self.channels.values()):
            channel.tell(self.run, shared, self._position(cursor), unsaid=unsaid)
        self._forget_ended()

    def receive(self, task_ids: frozenset[str], values: Values, cursor: Cursor) -> None:
        """Go on with the return values of some tasks, and push what follows."""
        if self.run is not None:
            for channel in list(self.channels.values()):
                channel.receive(self.run, task_ids, values, self._position(cursor))
            self._forget_ended()

    def join(
        self, question: Question, subscription: Subscription, cursor: Cursor, *, opening: bool = True
    ) -> tuple[Channel, Cursor]:
        """Let somebody watch. What is known is due to him at once, unless he shall be told in another way.

        Returns:
            Those who ask the same, and how far what is known has come.

        Raises:
            UnknownTask: The question names a task that the DAG does not have.
        """
        assert self.run is not None, "whoever joins has waited for the feed to start"
        known = self.run.task_ids
        for task_id in question.results:
            if task_id not in known:
                raise UnknownTask(self.key.dag_id, task_id, sorted(known))
        channel = self.channels.get(question)
        position = self._position(cursor)
        if channel is None:
            channel = self.channels[question] = Channel(Answer(question, self.run.run.clear_number))
            channel.subscriptions[subscription] = None
            channel.tell(self.run, channel.answer.open(self.run) if opening else [], position)
            self._forget_ended()
        else:
            channel.subscriptions[subscription] = None
            if opening:
                subscription.push(channel.open(self.run, position))
            elif channel.answer.told is not None:
                subscription.push(channel.wires([channel.answer.told], channel.place(position)))
        return channel, position

    def reveals(self, question: Question, since: Cursor) -> bool:
        """Tell whether a client may read something now that has been told to him without its values."""
        assert self.run is not None, "the feed has started"
        if not since.withheld or question.withheld:
            return False
        return since.told == "result" or (question.output and bool(self.run.output.frames))

    def missed(
        self, history: Iterable[Transition], channel: Channel, position: Cursor, since: Cursor, *, unborn: bool
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
        assert self.run is not None, "somebody has joined"
        answering = result_tasks(self.run, channel.answer.question)
        past = [transition for transition in history if position.saw(transition.txid)]
        if since.told is not None and any(_takes_back(transition, answering) for transition in past):
            return None
        if channel.answer.question.output and any(self._takes_words_back(transition) for transition in past):
            return None
        # Only for the frames: what they make of the run is known already.
        scratch = RunState(self.key, NOT_BEGUN, self.run.graph)
        resumed = Resumed(dag_id=self.key.dag_id, run_id=self.key.run_id, since=str(since))
        first = scratch.snapshot(answering) if unborn else resumed
        frames = [frame for transition in past for frame in self._frames_of(transition, scratch, channel)]
        withheld = channel.answer.question.withheld
        return channel.wires([first, *frames], position.of(since.told, ended=False, withheld=withheld))

    def leave(self, subscription: Subscription) -> None:
        """Forget a watcher, and the channel that nobody watches any more."""
        for question, channel in list(self.channels.items()):
            channel.subscriptions.pop(subscription, None)
            if not channel.subscriptions:
                del self.channels[question]

    def begin_anew(self, reason: ResetReason, cursor: Cursor) -> None:
        """Tell all watchers to forget what they were told, and tell them what is known now."""
        assert self.run is not None, "the feed has started again"
        reset = Reset(dag_id=self.key.dag_id, run_id=self.key.run_id, reason=reason)
        for channel in list(self.channels.values()):
            channel.answer = Answer(channel.answer.question, self.run.run.clear_number)
            channel.tell(self.run, [reset, *channel.answer.open(self.run)], self._position(cursor))
        self._forget_ended()

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connection of every watcher."""
        for subscription in self.subscriptions:
            subscription.close(code, reason)
        self.channels.clear()

    def _frames_of(self, transition: Transition, scratch: RunState, channel: Channel) -> Sequence[AnyFrame]:
        """Return the frames that tell a transition of the past."""
        assert self.run is not None, "somebody has joined"
        if not is_output(transition):
            return scratch.apply(transition)
        if not channel.answer.question.output:
            return ()
        frames = [frame for frame in tell_output(transition) if self.run.stands(frame)]
        return scratch.output.add(frames, hash(transition.body))[0]

    def _takes_words_back(self, transition: Transition) -> bool:
        """Tell whether something was taken back by a transition of the past that a task had said before."""
        assert self.run is not None, "somebody has joined"
        if is_output(transition):
            return transition.seq in self.run.output.begun_anew
        return transition.kind is Kind.TASK and transition.had_spoken and transition.state in UNSAID

    def _unseen(self, transitions: Iterable[Transition]) -> list[Transition]:
        assert self._loaded_at is not None, "the feed has started"
        return [transition for transition in transitions if not self._loaded_at.saw(transition.txid)]

    def _position(self, cursor: Cursor) -> Cursor:
        """Return how far this feed's state has come: what it was loaded at, until the tail is there too."""
        assert self._loaded_at is not None, "the feed has started"
        return cursor if cursor.covers(self._loaded_at) else self._loaded_at

    def _forget_ended(self) -> None:
        """Forget channels that have said their last; whoever asks again gets a fresh one."""
        for question, channel in list(self.channels.items()):
            if channel.answer.ended:
                del self.channels[question]


def wires_of(frames: Sequence[AnyFrame], cursor: Cursor) -> list[Wire]:
    """Put frames on the wire; the last of them carries the cursor."""
    *others, last = frames
    return [*map(Wire, others), Wire(last, cursor)]


def _takes_back(transition: Transition, answering: tuple[str, ...]) -> bool:
    """Tell whether a transition may take back an outcome that was told: a run or a task is cleared, or tried again."""
    if transition.kind is Kind.RUN:
        return transition.previous_state in RUN_FINAL or transition.state == transition.previous_state
    if transition.kind is not Kind.TASK or transition.previous_state is None:
        return False
    retried = transition.state == "up_for_retry" and transition.task_id in answering
    return retried or transition.state in {None, "restarting"}
