"""The load generator: connects clients, publishes frames, and records what each client reads and when.

A process of its own. While frames are in flight, data is only time-stamped and kept; numbers
are parsed at the end.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, cast

import psutil
import uvloop

from bench.fanout_connecting import connect_clients
from bench.fanout_payload import NUMBER, payload, run_id
from bench.recorder import BenchmarkError

STRAGGLER_SECONDS = 20.0
QUIET_SECONDS = 1.5
"""Seconds without a byte after which no more frames are expected."""


class Endpoint(NamedTuple):
    """Where to connect and to publish."""

    port: int
    path: str
    """With `{run}` for the name of a run."""

    websocket: bool
    opened: bytes
    """Text in the first bytes of an open stream."""

    feed_port: int
    publish_path: str | None = None
    """Path to which messages are POSTed, with `{run}`; by default numbers are written to the feed."""


class Load(NamedTuple):
    """The frames to publish."""

    rate: float
    """Bursts per second."""

    burst: int
    """Frames that are due at once."""

    seconds: float
    first: int
    """Number of the first frame."""

    runs: int
    """Frames go to the runs in turn; each client watches one."""


@dataclass
class ReadResult:
    """The frames of a load that the clients have read."""

    latencies: list[float]
    """Milliseconds, ascending."""

    warm_up: list[float]
    """Latencies of the first frames, if they are separate."""

    expected: int
    delivered: int
    lost: int
    doubled: int
    seconds: float
    """From the first frame to the last delivery."""

    client_cpu: float
    published: int


class Client(asyncio.Protocol):
    """One connection that stamps what it reads."""

    __slots__ = ("index", "reads", "transport")

    def __init__(self, index: int) -> None:
        self.index = index
        """Number of the run that it watches."""

        self.reads: list[tuple[float, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.monotonic(), data))


class Generator:
    """All clients of one candidate."""

    def __init__(self, target: Endpoint) -> None:
        self._target = target
        self._clients: list[Client] = []
        self._feed: asyncio.Transport | None = None

    async def connect(self, count: int, runs: int) -> float:
        """Connect clients; return the seconds up to the first frame of the last client."""
        loop = asyncio.get_running_loop()
        requests = [_request(self._target, run_id(index % runs)) for index in range(count)]
        began = time.monotonic()
        dialed = connect_clients(self._target.port, requests, self._target.opened)
        took = time.monotonic() - began
        for index, (sock, read) in enumerate(dialed):
            client = Client(index % runs)
            client.data_received(read)
            await loop.create_connection(lambda client=client: client, sock=sock)  # type: ignore[misc]
            self._clients.append(client)
        feed, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", self._target.feed_port)
        self._feed = feed
        return took

    async def publish(self, load: Load) -> ReadResult:
        """Publish, wait until all has arrived or nothing more comes, and return the result."""
        assert self._feed is not None, "it is connected"
        for client in self._clients:
            client.reads = []
        before, sent = _cpu_seconds(), dict[int, float]()
        loop = asyncio.get_running_loop()
        began, number = loop.time(), load.first
        for index in range(round(load.rate * load.seconds)):
            await asyncio.sleep(max(0.0, began + index / load.rate - loop.time()))
            numbers = range(number, number + load.burst)
            number += load.burst
            data = self._publication(numbers, load.runs)
            sent.update(dict.fromkeys(numbers, time.monotonic()))
            self._feed.write(data)
        return await self.collect(sent, load.runs, before)

    async def collect(self, sent: dict[int, float], runs: int, cpu_before: float, warm_up: int = 0) -> ReadResult:
        """Wait until all has arrived or nothing more comes, and return what was read.

        Args:
            sent: When each frame was published, by its number.
            runs: Runs to which frames went in turn.
            cpu_before: CPU seconds of this process before.
            warm_up: Latencies of the frames up to this number are separate.
        """
        due: dict[int, set[int]] = {}
        for number in sent:
            due.setdefault(number % runs, set()).add(number)
        expected = sum(len(due.get(client.index, ())) for client in self._clients)
        await self._settle()
        cpu = _cpu_seconds() - cpu_before
        latencies: list[float] = []
        early: list[float] = []
        lost = doubled = 0
        last = 0.0
        for client in self._clients:
            wanted = due.get(client.index, set())
            seen: set[int] = set()
            for at, found in _read_times(client.reads):
                if found in seen:
                    doubled += 1
                elif found in wanted:
                    seen.add(found)
                    (latencies if found > warm_up else early).append(1000 * (at - sent[found]))
                    last = max(last, at)
            lost += len(wanted) - len(seen)
            client.reads = []
        latencies.sort()
        early.sort()
        first = min(sent.values())
        delivered = len(latencies) + len(early)
        return ReadResult(latencies, early, expected, delivered, lost, doubled, last - first, cpu, len(sent))

    def close(self) -> None:
        for client in self._clients:
            client.transport.abort()
        if self._feed is not None:
            self._feed.abort()

    async def _settle(self) -> None:
        deadline = time.monotonic() + STRAGGLER_SECONDS
        before = -1
        while time.monotonic() < deadline:
            read = sum(len(client.reads) for client in self._clients)
            if read == before:
                return
            before = read
            await asyncio.sleep(QUIET_SECONDS)

    def _publication(self, numbers: Iterable[int], runs: int) -> bytes:
        target = self._target
        if target.publish_path is None:
            return " ".join(map(str, numbers)).encode() + b"\n"
        requests = []
        for number in numbers:
            body = payload(number, runs)
            path = target.publish_path.format(run=run_id(number % runs))
            head = (
                f"POST {path} HTTP/1.1\r\nHost: l\r\nX-EventSource-Event: task\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            requests.append(head.encode() + body)
        return b"".join(requests)


def _request(target: Endpoint, run: str) -> bytes:
    upgrade = "Accept: text/event-stream\r\n"
    if target.websocket:
        upgrade = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        )
    return f"GET {target.path.format(run=run)} HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n".encode()


def _read_times(reads: Iterable[tuple[float, bytes]]) -> Iterable[tuple[float, int]]:
    """Return when each number was read completely. A comma follows each, so a number cut by a read is found."""
    rest = b""
    for at, data in reads:
        text = rest + data
        end = 0
        for match in NUMBER.finditer(text):
            if match.end() < len(text):
                yield at, int(match[1])
                end = match.end()
        rest = text[max(end, len(text) - 40) :]


def _cpu_seconds() -> float:
    return time.process_time()


def run_generator(control: Connection, core: int | None) -> None:
    """Call the methods of `Generator` that the other end of a pipe names, with their arguments."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if core is not None:
        psutil.Process().cpu_affinity([core])
    # A garbage-collection pause here would count as the server's.
    gc.disable()
    uvloop.run(_handle_requests(control))


async def _handle_requests(control: Connection) -> None:
    generator: Generator | None = None
    while True:
        try:
            # In a thread, because the event loop would make the pipe non-blocking.
            name, *arguments = await asyncio.to_thread(control.recv)
        except EOFError:
            return
        try:
            if name == "target":
                generator = Generator(*arguments)
                control.send(None)
                continue
            assert generator is not None, "there is a target"
            did: Callable[..., Any] = getattr(generator, name)
            answer = did(*arguments)
            control.send(await answer if asyncio.iscoroutine(answer) else answer)
        except Exception as error:  # noqa: BLE001 # the other end reports any error
            control.send(BenchmarkError(f"{name}: {error!r}"))
