"""Figures of the latency benchmark from the recordings, and their targets."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from bench.baseline import BaselineRecording, Notification
from bench.stream_clients import Received
from bench.writer import Commit

COMMIT, FLOOR, SELECTED = "commit acknowledged", "floor: bare LISTEN", "floor plus one indexed SELECT"
STREAMS = ("frame over SSE", "frame over WebSocket")
TARGET_RATIO = 2.0
"""How many times the floor plus one indexed SELECT the median of a frame may take."""

RATE_KEPT = 0.95


@dataclass(frozen=True)
class Latency:
    """Milliseconds from just before the UPDATE was sent."""

    median: float
    p99: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency:
        ordered = sorted(1000 * one for one in seconds)
        return cls(statistics.median(ordered), ordered[round(0.99 * (len(ordered) - 1))])


@dataclass(frozen=True)
class Round:
    """The figures of one round."""

    latencies: dict[str, Latency]
    server_part: dict[str, float]
    """Median of each frame's time beyond the floor plus SELECT of the same commit, in milliseconds."""

    server_cpu_us: float
    """CPU time of the server per transition, for both of its clients."""

    rate: float
    """Transitions per second, as the writer managed to send them."""

    written: int
    notifications: int
    """Notifications that the baseline client received; fewer than written where they coalesce."""

    lost: int
    doubled: int
    disordered: int
    unexpected: list[str]
    """Frames that the stream must not contain, and other errors."""


def notification_times(commits: Sequence[Commit], notifications: Sequence[Notification]) -> dict[int, float]:
    """Return when the notification of each commit was received.

    A notification is empty, but names the backend that sent it. PostgreSQL delivers them in the order of their commits,
    and a backend has one transaction at a time. If each commit notified, the n-th notification of a backend belongs to
    its n-th commit, whatever the times are: the callback can run before the writer's own acknowledgement, which is
    sent only after the listeners have been signalled, and it can come after the same connection has sent its next
    UPDATE. By time alone, such a notification would also belong to the later commit.

    Where notifications coalesce, only time is left: a notification belongs to every commit sent before it that has none
    yet. "Sent", not "acknowledged", because it can precede the acknowledgement. This may match a
    commit that had not finished, which lowers the baseline and so makes the target harder, never easier.
    """
    by_backend: dict[int, list[Commit]] = defaultdict(list)
    for commit in sorted(commits, key=attrgetter("sent")):
        by_backend[commit.pid].append(commit)
    by_pid: dict[int, list[Notification]] = defaultdict(list)
    for notification in notifications:
        by_pid[notification.pid].append(notification)
    if all(len(by_pid[pid]) == len(own) for pid, own in by_backend.items()):
        return {
            commit.number: notification.at
            for pid, own in by_backend.items()
            for commit, notification in zip(own, by_pid[pid], strict=True)
        }
    times: dict[int, float] = {}
    waiting = sorted(commits, key=attrgetter("sent"), reverse=True)
    for notification in notifications:
        while notification.pid in by_backend and waiting and waiting[-1].sent < notification.at:
            times[waiting.pop().number] = notification.at
    return times


def evaluate_round(
    commits: Sequence[Commit],
    journal: Mapping[int, int],
    baseline: BaselineRecording,
    streams: Sequence[Received],
    *,
    warm_up: int,
    server_seconds: float,
) -> Round:
    """Return the figures of a round.

    Args:
        commits: The written transitions, in the order of numbers.
        journal: Number by seq, from the journal.
        baseline: Recording of the baseline client.
        streams: Recordings of the streams' clients, in the order of `STREAMS`.
        warm_up: Number of first commits that don't count for the latencies. They do count as lost or duplicated.
        server_seconds: CPU time of the server in the round.
    """
    counted = commits[warm_up:]
    learned: dict[str, Mapping[int, float]] = {
        COMMIT: {commit.number: commit.acked for commit in commits},
        FLOOR: notification_times(commits, baseline.notifications),
        SELECTED: baseline.seen,
    }
    unexpected = []
    if len(journal) != len(commits):
        unexpected.append(f"{len(journal)} rows in the journal for {len(commits)} commits")
    lost = doubled = disordered = 0
    for name, received in zip(STREAMS, streams, strict=True):
        learned[name] = {delivery.number: delivery.at for delivery in reversed(received.deliveries)}
        counts = Counter(delivery.seq for delivery in received.deliveries)
        lost += sum(seq not in counts for seq in journal)
        doubled += sum(count - 1 for count in counts.values())
        disordered += _count_disordered(commits, [delivery.number for delivery in received.deliveries])
        wrong = sum(journal.get(delivery.seq) != delivery.number for delivery in received.deliveries)
        if wrong:
            unexpected.append(f"{name}: {wrong} frames that are not what the journal holds")
        others = Counter(received.others) - Counter(snapshot=1)
        del others["ping"]
        if others:
            unexpected.append(f"{name}: frames {dict(others)}")
    for name in (FLOOR, SELECTED):
        missing = sum(commit.number not in learned[name] for commit in counted)
        if missing:
            unexpected.append(f"{name}: {missing} transitions never came")
    return Round(
        latencies={name: Latency.of(_latencies(counted, times)) for name, times in learned.items()},
        server_part={
            name: 1000
            * statistics.median(
                learned[name][commit.number] - baseline.seen[commit.number]
                for commit in counted
                if commit.number in learned[name] and commit.number in baseline.seen
            )
            for name in STREAMS
        },
        server_cpu_us=1e6 * server_seconds / len(commits),
        rate=(len(counted) - 1) / (counted[-1].sent - counted[0].sent),
        written=len(commits),
        notifications=len(baseline.notifications),
        lost=lost,
        doubled=doubled,
        disordered=disordered,
        unexpected=unexpected,
    )


def _latencies(commits: Iterable[Commit], times: Mapping[int, float]) -> list[float]:
    return [times[commit.number] - commit.sent for commit in commits if commit.number in times]


def _count_disordered(commits: Iterable[Commit], delivered: Iterable[int]) -> int:
    """Count deliveries after one that was certainly committed later.

    Transactions that overlapped may come in either order: each batch is in the order of the journal, and a row of a
    transaction that commits late comes with a later batch. A commit acknowledged before another was sent can't.
    """
    by_number = {commit.number: commit for commit in commits}
    newest = 0.0
    count = 0
    for number in delivered:
        if number in by_number:
            count += by_number[number].acked < newest
            newest = max(newest, by_number[number].sent)
    return count


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds."""

    rounds: list[Round]
    offered: float

    def latency(self, name: str) -> Latency:
        each = [one.latencies[name] for one in self.rounds]
        return Latency(statistics.median(one.median for one in each), statistics.median(one.p99 for one in each))

    def ratio(self, name: str) -> float:
        """Return the ratio to the baseline plus one indexed SELECT."""
        return self.latency(name).median / self.latency(SELECTED).median

    def server_part(self, name: str) -> float:
        return statistics.median(one.server_part[name] for one in self.rounds)

    @property
    def server_cpu_us(self) -> float:
        return statistics.median(one.server_cpu_us for one in self.rounds)

    @property
    def rate(self) -> float:
        return statistics.median(one.rate for one in self.rounds)

    def total(self, what: str) -> int:
        return sum(getattr(one, what) for one in self.rounds)

    def misses(self) -> list[str]:
        """Return the missed targets as texts."""
        found = [
            f"{name}: the median is {self.ratio(name):.2f} times that of the {SELECTED}; the target is {TARGET_RATIO:g}"
            for name in STREAMS
            if self.ratio(name) > TARGET_RATIO
        ]
        found += [f"{self.total(what)} frames {what}" for what in ("lost", "doubled", "disordered") if self.total(what)]
        found += [text for one in self.rounds for text in one.unexpected]
        if self.rate < RATE_KEPT * self.offered:
            found.append(f"only {self.rate:.0f} of {self.offered:g} transitions/s could be written")
        return found

    def as_json(self) -> dict[str, object]:
        """Return the figures as plain values."""
        keys = dict(
            zip((COMMIT, FLOOR, SELECTED, *STREAMS), ("commit", "floor", "select", "sse", "websocket"), strict=True)
        )
        latencies = {}
        for name, key in keys.items():
            latency = self.latency(name)
            latencies[key] = {
                "median_ms": round(latency.median, 3),
                "p99_ms": round(latency.p99, 3),
                "median_ms_of_rounds": [round(one.latencies[name].median, 3) for one in self.rounds],
                "p99_ms_of_rounds": [round(one.latencies[name].p99, 3) for one in self.rounds],
            }
        return {
            "benchmark": "latency",
            "rate": self.offered,
            "rate_kept": round(self.rate, 1),
            "rounds": len(self.rounds),
            **{what: self.total(what) for what in ("written", "notifications", "lost", "doubled", "disordered")},
            "latency": latencies,
            "ratio_to_select": {keys[name]: round(self.ratio(name), 2) for name in STREAMS},
            "server_part_ms": {keys[name]: round(self.server_part(name), 3) for name in STREAMS},
            "server_cpu_us_per_transition": round(self.server_cpu_us, 1),
            "misses": self.misses(),
        }
