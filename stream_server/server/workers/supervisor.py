"""The process that starts the workers, replaces those that die, and follows the journal for all of them."""

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

import anyio

from stream_server.errors import StreamServerError
from stream_server.hub.asyncio_tasks import TaskSet
from stream_server.journal.run_store import RunStore
from stream_server.protocol.backoff import Backoff
from stream_server.server.journal_service import JournalService
from stream_server.server.main import configure_logging
from stream_server.server.metrics import Metrics
from stream_server.server.workers.channel import Channel
from stream_server.server.workers.messages import FromWorker
from stream_server.server.workers.relay import WORKER_TIMEOUT_SECONDS, Relay
from stream_server.server.workers.sockets import open_admin_listener, open_listeners
from stream_server.settings import Settings

log = logging.getLogger(__name__)

RESTART_SECONDS = (0.1, 5.0)
"""First and longest wait before a worker that died is replaced."""

KILL_DELAY_SECONDS = 2.0
"""Time beyond its grace period after which a worker that does not stop is killed."""


def run_supervisor(settings: Settings) -> None:
    """Serve with several processes until SIGINT or SIGTERM.

    Raises:
        SettingsError: A port is in use, or an address is not one of this machine.
        StreamServerError: Following the journal has failed; the log contains the reason.
    """
    configure_logging(settings)
    sockets = open_listeners(settings.host, settings.port, settings.workers)
    for sock in sockets[0]:
        log.info("Listening on %s port %d with %d workers", *sock.getsockname()[:2], settings.workers)
    # One socket for all workers: they give the same answers.
    admin = open_admin_listener(settings)
    asyncio.run(Supervisor(settings, sockets, admin).run())


class Supervisor:
    """Runs the workers of one host.

    Args:
        settings: Passed on to the workers.
        sockets: The listening sockets of each worker.
        admin: Listening socket of the operators' port, shared by all workers.
    """

    def __init__(
        self, settings: Settings, sockets: list[list[socket.socket]], admin: socket.socket | None = None
    ) -> None:
        self._settings = settings
        self._admin_socket = admin
        self._sockets = sockets
        self._metrics = Metrics()
        self._run_store = RunStore(
            settings.database_address,
            pool_size=1,
            max_result_bytes=settings.max_result_bytes,
            max_output_bytes=settings.max_output_bytes,
        )
        self._relay = Relay(self._run_store, len(sockets), self._metrics.record_failed_message)
        self._metrics.register_workers(self._relay)
        self._processes: set[Process] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM. A second signal kills the workers.

        Raises:
            StreamServerError: Following the journal has failed.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._request_stop)
        journal = JournalService(self._settings, self._relay, self._run_store, self._metrics)
        self._relay.attach(journal)
        journal.tail.on_status(self._relay.send_status)
        tasks = TaskSet("supervisor")
        following = tasks.start(journal.run(), "journal service")
        following.add_done_callback(lambda _: self._stopping.set())
        tasks.start(self._relay.send_heartbeats(), "heartbeats")
        workers = TaskSet("worker")
        for sockets in self._sockets:
            workers.start(self._keep_worker(sockets))
        await self._stopping.wait()
        has_failed = following.done()
        if has_failed:
            log.critical("Following the journal has failed", exc_info=following.exception())
        await self._stop_workers(workers)
        await tasks.aclose()
        await self._relay.close()
        await self._run_store.close()
        if has_failed:
            raise StreamServerError("Following the journal has failed; the log contains the reason")

    @property
    def _stop_timeout(self) -> float:
        """Seconds a worker has to stop, by itself within the grace period."""
        return self._settings.grace_period + KILL_DELAY_SECONDS

    def _request_stop(self) -> None:
        if self._stopping.is_set():
            self._kill_workers()
        self._stopping.set()

    async def _stop_workers(self, workers: TaskSet) -> None:
        """Terminate the workers, which drain their streams; kill those that do not stop in time."""
        for sock in {sock for each in self._sockets for sock in each}:
            sock.close()
        if self._admin_socket is not None:
            self._admin_socket.close()
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.terminate()
        with anyio.move_on_after(self._stop_timeout):
            await workers.join()
        if workers:
            log.error("%d workers did not stop in time and are killed", len(self._processes))
            self._kill_workers()
            await workers.join()

    def _kill_workers(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()

    async def _keep_worker(self, sockets: list[socket.socket]) -> None:
        """Run a worker on these sockets until the supervisor stops. Replace the worker when it dies."""
        backoff = Backoff(*RESTART_SECONDS)
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                process, ours = await self._start_worker(sockets)
            except OSError as error:
                # For example for want of processes, memory or descriptors, which others may free.
                log.error("A worker could not be started (%s); trying again", error, extra={"action": "worker_lost"})  # noqa: TRY400 # no traceback for what the system lacks
            else:
                code = await self._run_worker(process, ours)
                if self._stopping.is_set():
                    return
                backoff.reset_after(time.monotonic() - started)
                self._metrics.record_worker_loss()
                log.error("A worker died (%s); starting another", describe_exit(code), extra={"action": "worker_lost"})
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff.next_wait())

    async def _start_worker(self, sockets: list[socket.socket]) -> tuple[Process, socket.socket]:
        """Start a worker, and return its process and our end of its channel.

        Raises:
            OSError: The system lacks what a process needs.
        """
        ours, theirs = socket.socketpair()
        inherited = [theirs, *sockets] if self._admin_socket is None else [theirs, self._admin_socket, *sockets]
        descriptors = [sock.fileno() for sock in inherited]
        command = [sys.executable, "-m", "stream_server.server.workers", *map(str, descriptors)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=descriptors,
                stdin=PIPE,
                stdout=DEVNULL,
                # Ctrl+C in a terminal signals the whole session. Only the supervisor may get it: it stops the workers.
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._processes.add(process)
        return process, ours

    async def _run_worker(self, process: Process, ours: socket.socket) -> int:
        """Serve a worker until it ends, and return its exit code (negative for a signal)."""
        assert process.stdin is not None, "it is a pipe"
        # The pipe stays open: its end is how the worker notices that this process has ended (`parent_watch`).
        process.stdin.write(pickle.dumps(self._settings))
        if self._stopping.is_set():
            # It was started after `_stop_workers` had terminated the others.
            process.terminate()
        channel: Channel[FromWorker] = await Channel.open(ours, FromWorker)
        try:
            await self._relay.serve_worker(channel)
        except TimeoutError:
            log.warning("A worker sent nothing for %g s and is killed", WORKER_TIMEOUT_SECONDS)
            process.kill()
        try:
            return await asyncio.wait_for(process.wait(), self._stop_timeout)
        except asyncio.TimeoutError:
            log.warning("A worker did not stop in time and is killed")
            process.kill()
            return await process.wait()
        finally:
            self._processes.discard(process)


def describe_exit(code: int) -> str:
    """Return how a process has ended, in words."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
