"""The process that starts the workers, replaces those that die, and does once what is done once for a host."""

from __future__ import annotations

import asyncio
import logging
import pickle
import random
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

from stream_server.errors import StreamServerError
from stream_server.journal.run_store import Runs
from stream_server.server.journal_service import Duties
from stream_server.server.main import begin_log
from stream_server.server.metrics import Metrics
from stream_server.server.workers.channel import Channel
from stream_server.server.workers.messages import Up
from stream_server.server.workers.relay import PATIENCE_SECONDS, Relay
from stream_server.server.workers.sockets import listening
from stream_server.settings import Settings

log = logging.getLogger(__name__)

BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest wait before a worker that has died is replaced; it doubles each time, with jitter."""

FORCE_SECONDS = 2.0
"""So much longer than its grace periods a worker may take to stop before it is killed."""


def supervise(settings: Settings) -> None:
    """Serve by several processes until SIGINT or SIGTERM.

    Raises:
        SettingsError: The port is taken, or the address is none of this machine's.
        StreamServerError: The journal can be followed no more, for a reason that the log tells.
    """
    begin_log(settings)
    sockets = listening(settings.host, settings.port, settings.workers)
    for sock in sockets[0]:
        log.info("Listening on %s port %d with %d workers", *sock.getsockname()[:2], settings.workers)
    admin: socket.socket | None = None
    if settings.admin_port is not None:
        # Whoever is free answers: what there is to say is the same.
        ((admin, *_),) = listening(settings.admin_host, settings.admin_port, 1)
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
        self._admin = admin
        self._sockets = sockets
        self._metrics = Metrics()
        self._runs = Runs(
            settings.database_url.get_secret_value(),
            pool_size=1,
            max_result_bytes=settings.max_result_bytes,
            max_output_bytes=settings.max_output_bytes,
        )
        self._relay = Relay(self._runs, len(sockets), self._metrics.message_failed)
        self._metrics.attend_workers(self._relay)
        self._processes: set[Process] = set()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGINT or SIGTERM; a second one kills what is left.

        Raises:
            StreamServerError: The journal can be followed no more.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        duties = Duties(self._settings, self._relay, self._runs, self._metrics)
        self._relay.attend(duties)
        duties.tail.on_status(self._relay.stand)
        following = asyncio.create_task(duties.run(), name="following")
        following.add_done_callback(lambda _: self._stopping.set())
        beating = asyncio.create_task(self._relay.beat(), name="beat")
        keeping = [asyncio.create_task(self._keep(each), name="worker") for each in self._sockets]
        await self._stopping.wait()
        failed = following.done()
        if failed:
            log.critical("The journal is followed no more", exc_info=following.exception())
        await self._end(keeping)
        for task in (following, beating):
            task.cancel()
        await asyncio.gather(following, beating, return_exceptions=True)
        await self._runs.close()
        if failed:
            raise StreamServerError("The journal is followed no more; the log says why")

    @property
    def _patience(self) -> float:
        """Seconds in which a worker must have stopped: streams have the grace period, and so have other requests."""
        return 2 * self._settings.grace_period + FORCE_SECONDS

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._kill()
        self._stopping.set()

    async def _end(self, keeping: list[asyncio.Task[None]]) -> None:
        """Have every worker drain its streams, and see to it that none is left."""
        for sock in {sock for each in self._sockets for sock in each}:
            sock.close()
        if self._admin is not None:
            self._admin.close()
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.terminate()
        _, late = await asyncio.wait(keeping, timeout=self._patience)
        if late:
            log.error("%d workers did not stop in time, and are killed", len(self._processes))
            self._kill()
            await asyncio.wait(late)

    def _kill(self) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                process.kill()

    async def _keep(self, sockets: list[socket.socket]) -> None:
        """Have a worker accept connections from these sockets: one after the other, should they die."""
        wait, longest = BACKOFF_SECONDS
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._work(sockets)
            if self._stopping.is_set():
                return
            if time.monotonic() - began > longest:
                wait = BACKOFF_SECONDS[0]
            self._metrics.lost_worker()
            log.error("A worker has died (%s); starting another", told(code), extra={"action": "worker_lost"})
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait * random.uniform(0.5, 1.5))  # noqa: S311 # no secret
            wait = min(wait * 2, longest)

    async def _work(self, sockets: list[socket.socket]) -> int:
        """Run one worker to its end, and return its exit code."""
        ours, theirs = socket.socketpair()
        given = [theirs, *sockets] if self._admin is None else [theirs, self._admin, *sockets]
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
        channel: Channel[Up] = await Channel.open(ours, Up)
        try:
            await self._relay.converse(channel)
        except TimeoutError:
            log.warning("A worker has said nothing for %g s, and is killed", PATIENCE_SECONDS)
            process.kill()
        try:
            return await asyncio.wait_for(process.wait(), self._patience)
        except asyncio.TimeoutError:
            log.warning("A worker did not stop in time, and is killed")
            process.kill()
            return await process.wait()
        finally:
            self._processes.discard(process)


def told(code: int) -> str:
    """Say how a process has ended."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
