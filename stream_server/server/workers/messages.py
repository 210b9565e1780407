"""Messages between the supervisor, which follows the journal, and its workers.

The supervisor sends every worker what the tail reads, in the order of the tail. A worker sends what its clients watch,
and its metrics. Both ends are always of the same version.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from stream_server.domain.run_state import RunKey
from stream_server.domain.transition import ReadTiming, Transition
from stream_server.hub.filters import Filter
from stream_server.protocol.cursor import JournalPosition
from stream_server.protocol.frames import ResetReason
from stream_server.server.metric_families import MetricFamily


class WorkerMessage(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages."""


class StartMessage(WorkerMessage, frozen=True, tag="start"):
    """`BatchSink.start`."""

    position: JournalPosition


class BatchMessage(WorkerMessage, frozen=True, tag="batch"):
    """`BatchSink.dispatch`. Output that the worker does not watch has no body."""

    transitions: list[Transition]
    position: JournalPosition
    timing: ReadTiming | None


class ResyncMessage(WorkerMessage, frozen=True, tag="resync"):
    """`BatchSink.resync`."""

    position: JournalPosition
    reason: ResetReason


class ReconnectMessage(WorkerMessage, frozen=True, tag="reconnect"):
    """`BatchSink.reconnect`."""

    position: JournalPosition


class TailStatusMessage(WorkerMessage, frozen=True, tag="status"):
    """Status of the tail and of the workers, for `/ready`."""

    is_connected: bool
    receives_notifications: bool
    problems: list[str]
    warnings: list[str]


class MetricsRequest(WorkerMessage, frozen=True, tag="metrics"):
    """Request for the worker's metrics; also a heartbeat: a worker that does not answer is killed."""

    number: int


class TotalMetrics(WorkerMessage, frozen=True, tag="total_metrics"):
    """Sum of the metrics of all processes, in answer to `TotalMetricsRequest`."""

    number: int
    families: list[MetricFamily]


ToWorker: TypeAlias = (
    StartMessage | BatchMessage | ResyncMessage | ReconnectMessage | TailStatusMessage | MetricsRequest | TotalMetrics
)


class WorkerReady(WorkerMessage, frozen=True, tag="ready"):
    """The worker accepts connections."""


class WatchStarted(WorkerMessage, frozen=True, tag="watch"):
    """Clients of the worker have subscribed."""

    runs: list[RunKey]
    """Runs that the worker watches since its last message."""

    output_filters: list[Filter] | None
    """Filters of the worker's streams of many runs that include output; `None` where they are the same as before."""


class ResyncRequest(WorkerMessage, frozen=True, tag="resync_request"):
    """Request for a `ResyncMessage`: the worker could not decode or handle a message, or read output."""


class WorkerMetrics(WorkerMessage, frozen=True, tag="worker_metrics"):
    """What the worker has counted and still watches, in answer to `MetricsRequest`."""

    number: int
    has_subscribers: bool
    ended_runs: list[RunKey]
    """Runs that the worker does not watch any more."""

    output_filters: list[Filter] | None
    """As in `WatchStarted`."""

    families: list[MetricFamily]


class TotalMetricsRequest(WorkerMessage, frozen=True, tag="total_metrics_request"):
    """Request for the metrics of all processes."""

    number: int


FromWorker: TypeAlias = WorkerReady | WatchStarted | ResyncRequest | WorkerMetrics | TotalMetricsRequest
