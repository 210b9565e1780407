"""What the process that follows the journal and its workers tell each other, as MessagePack.

Down go the words of the tail, in its order, to every worker. Up comes who watches, and what is counted.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from stream_server.domain.transition import ReadTiming, Transition
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import ResetReason
from stream_server.server.metric_families import MetricFamily


class WorkerMessage(msgspec.Struct, frozen=True, array_like=True):
    """What all messages share."""


class StartMessage(WorkerMessage, frozen=True, tag="begin"):
    """Batches will come from here on."""

    position: JournalPosition


class BatchMessage(WorkerMessage, frozen=True, tag="batch"):
    """What a read of the journal has found."""

    transitions: list[Transition]
    position: JournalPosition
    timing: ReadTiming | None


class ResyncMessage(WorkerMessage, frozen=True, tag="anew"):
    """What was known may not be true any more."""

    position: JournalPosition
    reason: ResetReason


class ReconnectMessage(WorkerMessage, frozen=True, tag="reconnect"):
    """The database server may be another one from here on."""

    position: JournalPosition


class TailStatusMessage(WorkerMessage, frozen=True, tag="standing"):
    """How the tail and the workers are doing: what `/ready` tells."""

    is_connected: bool
    receives_notifications: bool
    problems: list[str]
    warnings: list[str]


class MetricsRequest(WorkerMessage, frozen=True, tag="ask"):
    """Tell what you have counted. Whoever does not answer for long is taken for dead."""

    number: int


class TotalMetrics(WorkerMessage, frozen=True, tag="sums"):
    """What all processes together have counted: the answer to a `Scrape`."""

    number: int
    families: list[MetricFamily]


ToWorker: TypeAlias = (
    StartMessage | BatchMessage | ResyncMessage | ReconnectMessage | TailStatusMessage | MetricsRequest | TotalMetrics
)


class WorkerReady(WorkerMessage, frozen=True, tag="serving"):
    """The worker begins to serve."""


class WatchStarted(WorkerMessage, frozen=True, tag="watch"):
    """Somebody has begun to watch."""


class Resync(WorkerMessage, frozen=True, tag="resync"):
    """The worker could not decode or handle a message: it asks for an `ResyncMessage` with a current cursor."""


class WorkerMetrics(WorkerMessage, frozen=True, tag="counted"):
    """What this worker has counted: the answer to an `MetricsRequest`."""

    number: int
    has_subscribers: bool
    """Whether anything is watched."""

    families: list[MetricFamily]


class TotalMetricsRequest(WorkerMessage, frozen=True, tag="scrape"):
    """Tell what all processes have counted."""

    number: int


FromWorker: TypeAlias = WorkerReady | WatchStarted | Resync | WorkerMetrics | TotalMetricsRequest
