"""The process that starts the workers, replaces those that die, and does once what is done once for a host."""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

from stream_server.errors import StreamServerError
from stream_server.hub.task_set import TaskSet
from stream_server.journal.run_store import RunStore
from stream_server.protocol.backoff import Backoff
from stream_server.server.journal_service import JournalService
from stream_server.server.main import configure_logging
from stream_server.server.metrics import Metrics
from stream_server.server.workers.channel import Channel
from stream_server.server.workers.messages import FromWorker
from stream_server.server.workers.relay import WORKER_TIMEOUT_SECONDS, Relay
from stream_server.server.workers.sockets import open_listeners
from stream_server.settings import Settings

log = logging.getLogger(__name__)

RESTART_SECONDS = (0.1, 5.0)
"""First and longest wait before a worker that died is replaced."""

KILL_DELAY_SECONDS = 2.0
"""So much longer than its grace periods a worker may take to stop before it is killed."""


def run_supervisor(settings: Settings) -> None:
    """Serve by several processes until SIGINT or SIGTERM.

    Raises:
        SettingsError: The port is taken, or the address is none of this machine's.
        StreamServerError: The journal can be followed no more, for a reason that the log tells.
    """
    configure_logging(settings)
    sockets = open_listeners(settings.host, settings.port, settings.workers)
    for sock in sockets[0]:
        log.info("Listening on %s port %d with %d workers", *sock.getsockname()[:2], settings.workers)
    admin: socket.socket | None = None
    if settings.admin_port is not None:
        # Whoever is free answers: what there is to say is the same.
        ((admin, *_),) = open_listeners(settings.admin_host, settings.admin_port, 1)
        log.info("Operators are answered on %s port %d", *admin.getsockname()[:2])
    asyncio.run(Supervisor(settings, sockets, admin).run())


class Supervisor:
    """Keeps the workers of one host alive.

    Args:
        settings: The settings, which workers get too.
        sockets: What each worker accepts connections from.
        admin: What all accept connections of operators from.
    """

    def __init__(
        self, settings: Settings, sockets: list[list[socket.socket]], admin: socket.socket | None = None
    ) -> None:
        self._settings = settings
        self._admin_socket = admin
        self._sockets = sockets
        self._metrics = Metrics()
        self._run_store = RunStore(
            settings.database_url.get_secret_value(),
            pool_size=1,
            max_result_bytes=settings.max_result_bytes,
            max_output_bytes=settings.max_output_bytes,
        )
        self._relay = Relay(self._run_store, len(sockets), self._metrics.record_failed_message)
        self._metrics.register_workers(self._relay)
        self._processes: set[Process] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM; a second one kills what is left.

        Raises:
            StreamServerError: The journal can be followed no more.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._request_stop)
        duties = JournalService(self._settings, self._relay, self._run_store, self._metrics)
        self._relay.attach(duties)
        duties.tail.on_status(self._relay.send_status)
        tasks = TaskSet("supervisor")
        following = tasks.start(duties.run(), "journal service")
        following.add_done_callback(lambda _: self._stopping.set())
        tasks.start(self._relay.send_heartbeats(), "heartbeats")
        keeping = [asyncio.create_task(self._keep_worker(each), name="worker") for each in self._sockets]
        await self._stopping.wait()
        failed = following.done()
        if failed:
            log.critical("The journal is followed no more", exc_info=following.exception())
        await self._stop_workers(keeping)
        await tasks.aclose()
        await self._relay.close()
        await self._run_store.close()
        if failed:
            raise StreamServerError("The journal is followed no more; the log says why")

    @property
    def _stop_timeout(self) -> float:
        """Seconds in which a worker must have stopped: streams have the grace period, and so have other requests."""
        return 2 * self._settings.grace_period + KILL_DELAY_SECONDS

    def _request_stop(self) -> None:
        if self._stopping.is_set():
            self._kill_workers()
        self._stopping.set()

    async def _stop_workers(self, keeping: list[asyncio.Task[None]]) -> None:
        """Have every worker drain its streams, and see to it that none is left."""
        for sock in {sock for each in self._sockets for sock in each}:
            sock.close()
        if self._admin_socket is not None:
            self._admin_socket.close()
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.terminate()
        _, late = await asyncio.wait(keeping, timeout=self._stop_timeout)
        if late:
            log.error("%d workers did not stop in time, and are killed", len(self._processes))
            self._kill_workers()
            await asyncio.wait(late)

    def _kill_workers(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()

    async def _keep_worker(self, sockets: list[socket.socket]) -> None:
        """Have a worker accept connections from these sockets: one after the other, should they die."""
        backoff = Backoff(*RESTART_SECONDS)
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_worker(sockets)
            if self._stopping.is_set():
                return
            backoff.reset_after(time.monotonic() - started)
            self._metrics.record_worker_loss()
            log.error("A worker has died (%s); starting another", describe_exit(code), extra={"action": "worker_lost"})
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff.next_wait())

    async def _run_worker(self, sockets: list[socket.socket]) -> int:
        """Run one worker to its end, and return its exit code."""
        ours, theirs = socket.socketpair()
        given = [theirs, *sockets] if self._admin_socket is None else [theirs, self._admin_socket, *sockets]
        numbers = [sock.fileno() for sock in given]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "stream_server.server.workers", *map(str, numbers)),
                pass_fds=numbers,
                stdin=PIPE,
                stdout=DEVNULL,
                # Ctrl+C in a terminal is for us: we tell them.
                start_new_session=True,
            )
        self._processes.add(process)
        assert process.stdin is not None, "it was asked for"
        process.stdin.write(pickle.dumps(self._settings))
        if self._stopping.is_set():
            process.terminate()
        channel: Channel[FromWorker] = await Channel.open(ours, FromWorker)
        try:
            await self._relay.serve_worker(channel)
        except TimeoutError:
            log.warning("A worker has said nothing for %g s, and is killed", WORKER_TIMEOUT_SECONDS)
            process.kill()
        try:
            return await asyncio.wait_for(process.wait(), self._stop_timeout)
        except asyncio.TimeoutError:
            log.warning("A worker did not stop in time, and is killed")
            process.kill()
            return await process.wait()
        finally:
            self._processes.discard(process)


def describe_exit(code: int) -> str:
    """Say how a process has ended."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
