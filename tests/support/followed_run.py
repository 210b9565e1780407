"""A feed of a run without a hub."""

from __future__ import annotations

from stream_server.domain.outcome import WatchOptions
from stream_server.hub.run_feed import RunFeed
from stream_server.hub.subscription import Subscription
from stream_server.protocol.frames import AnyFrame
from support.builders import KEY, History, types
from support.run_moves import Move, apply_move

UNTIL_RUN = WatchOptions(until="run")


class FollowedRun:
    """A feed and the history that it follows, read as the hub does."""

    def __init__(self) -> None:
        self.history = History()
        self.feed = RunFeed(KEY)
        self.feed.start(self.history.state(), self.history.cursor())
        self._read = len(self.history.journal)

    def join(self, options: WatchOptions = UNTIL_RUN, limit: int = 1_000_000) -> Subscription:
        subscription = Subscription(limit)
        self.feed.add_subscription(options, subscription, self.history.cursor())
        return subscription

    def read(self) -> None:
        batch, self._read = self.history.journal[self._read :], len(self.history.journal)
        self.feed.apply(batch, self.history.cursor())

    def fetch(self) -> None:
        """Read the values that are needed after the update, as the hub does."""
        while self.feed.is_updating:
            self.feed.update(at_most=1)
        while wanted := self.feed.wanted_tasks:
            self.feed.add_values(wanted, self.history.values(wanted), self.history.cursor())

    def catch_up(self) -> None:
        self.read()
        self.fetch()

    def apply_move_or_read(self, move: Move) -> None:
        if move[0] == "read":
            self.read()
        elif move[0] == "fetch":
            self.fetch()
        else:
            apply_move(self.history, move)


def frames(subscription: Subscription) -> list[AnyFrame]:
    return [wire.frame for wire in subscription.take()]


def taken(subscription: Subscription) -> list[str]:
    return types(frames(subscription))
