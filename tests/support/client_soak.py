"""Thousands of clients that connect and disconnect for a while: nothing may leak, be lost or be duplicated.

`python -m support.client_soak --minutes 30 [--clients 2000]`; `STREAM_SERVER_SEED` repeats the choices of a seed.
Two servers follow a journal that is written continuously; one of them is stopped and killed repeatedly, and both lose
their connections to PostgreSQL. Clients of all kinds watch: some stay, some are slow, most disconnect, also without a
FIN, and reconnect to either server. The program prints a line for each sample. Its last line is JSON: figures, misses.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import random
import resource
import secrets
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import asyncpg
import httpx
import psutil

from stream_server.cli.demo.ports import LOOPBACK
from stream_server.domain.run_state import RunKey
from support.airflow_sql import CHAIN, AirflowSql
from support.postgres import create_database_with_journal, drop_database, running_postgres
from support.server import terminate_connections
from support.soak_clients import FAST, KINDS, Client, Tally, watch_to_end
from support.soak_server import ServerState
from support.soak_server_process import PING_SECONDS, SoakServerProcess
from support.waiting import eventually_answered

DAG_ID = "pulse"
RUNS = 16
SECONDS_PER_UPDATE = 1.0
FAST_SECONDS_PER_UPDATE = 1 / 150
STATES = ("scheduled", "queued", "running", "deferred")

ABANDON_SECONDS = 30 * PING_SECONDS
"""Time after which the server must have aborted an abandoned connection, on a busy machine."""

WATCHERS = (*("sse", "websocket") * 2, "result", "result")
"""Clients of each run that is run to its end."""

PERMANENT = 0.4
"""Share of the clients that disconnect only at the end."""

SLOW = 10
FIREHOSES = 5
FAULTS = ("reconnect", "drain", "kill")
FAULT_SECONDS = 12.0
SAMPLE_SECONDS = 5.0
POLL_SECONDS = 0.2
CATCH_UP_SECONDS = 180.0
"""Time limit for the work before and after the soak."""

GROWTH = 1.15
"""Greatest ratio of the peak of memory at the end to that after the first third."""

WARM_SECONDS = 60.0
"""Time in which memory may grow, because some code runs for the first time."""

OBJECTS_LEFT, OBJECTS_PER_VISIT = 500, 0.02
"""Objects that may stay for ever: of code that runs for the first time, and of each visit."""

UPDATE = "UPDATE task_instance SET state = $2, try_number = try_number + 1 WHERE id = $1 RETURNING try_number"


class ClientSoak:
    """One workload, two servers and all their clients."""

    def __init__(self, url: str, steady: SoakServerProcess, restarted: SoakServerProcess, clients: int) -> None:
        self._url = url
        self._steady = steady
        self._restarted = restarted
        self._ports = [steady.port, restarted.port]
        self._clients = clients
        self._numbers: dict[RunKey, int] = {}
        self._runs = [RunKey(DAG_ID, f"manual__{number:02}_{'x' * 200}") for number in range(RUNS)]
        self.tally = Tally()
        self.faults: Counter[str] = Counter()
        self.samples: list[tuple[float, ServerState]] = []
        self.late: list[str] = []
        self.permanent = 0
        self.closed_abandoned = 0

    async def run(self, seconds: float, rounds: int) -> None:
        """Run a few clients and each fault first; then all clients, for `seconds` and `rounds` of faults.

        The first part imports late modules, and fills caches such as those of prepared statements.
        """
        self._is_long = seconds > WARM_SECONDS
        await self._prepare()
        await self._run_clients(3.0, min(self._clients, 60), rounds=1)
        self.before = await self._wait_until_idle()
        self.tally.visits.clear()
        self.faults.clear()
        self._began = time.monotonic()
        sampler, closer = asyncio.create_task(self._sample()), asyncio.create_task(self._close_abandoned())
        await self._run_clients(seconds, self._clients, rounds)
        sampler.cancel()
        self.after = await self._wait_until_idle(self.before.objects + self._spare_objects())
        closer.cancel()
        for ended in await asyncio.gather(sampler, closer, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                self.tally.misses.append(f"the soak failed: {ended!r}")
        for one in self.tally.abandoned:
            one.connection.disconnect("reset")
        self.seconds = time.monotonic() - self._began

    async def _prepare(self) -> None:
        async with AirflowSql.open(self._url) as airflow:
            version = await airflow.add_dag(DAG_ID, CHAIN, {"clean_up": False})
            self._short = await airflow.add_dag("short", CHAIN, {"clean_up": False})
            for key in self._runs:
                await airflow.trigger(key, version, list(CHAIN))

    async def _run_clients(self, seconds: float, count: int, rounds: int) -> None:
        """Have clients connect and disconnect; at the end, check that permanent clients have received all rows."""
        stopping, ending = asyncio.Event(), asyncio.Event()
        clients = self._make_clients(count)
        # One after the other: benchmarks connect all at once.
        client_tasks = []
        work = [asyncio.create_task(self._update_run(key, stopping)) for key in self._runs]
        work += [asyncio.create_task(self._run_to_end(number, stopping)) for number in range(2)]
        injection = asyncio.create_task(self._inject_faults(seconds, rounds))
        ends = time.monotonic() + 0.85 * seconds
        for client in clients:
            client_tasks.append(asyncio.create_task(client.visit_repeatedly(ending)))
            await asyncio.sleep(min(0.01, 0.1 * seconds / count))
        while time.monotonic() < ends or not injection.done():
            tasks = [*work, *client_tasks, injection]
            ended, _ = await asyncio.wait(tasks, timeout=POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for task in ended:
                task.result()
        stopping.set()
        await asyncio.gather(*work)
        await self._wait_for_permanent_clients([client for client in clients if client.is_permanent])
        ending.set()
        for task in client_tasks:
            task.cancel()
        await asyncio.gather(*client_tasks, return_exceptions=True)

    def _make_clients(self, count: int) -> list[Client]:
        kinds = ["slow"] * SLOW + ["firehose"] * FIREHOSES
        kinds += itertools.islice(itertools.cycle(KINDS[:4]), max(0, count - len(kinds)))
        return [
            Client(
                kind, self._ports, self._runs, self.tally, is_permanent=kind == "slow" or number % 10 < 10 * PERMANENT
            )
            for number, kind in enumerate(kinds)
        ]

    async def _update_run(self, key: RunKey, stopping: asyncio.Event) -> None:
        """Change the state of a run at a steady rate; each transition has the next number."""
        pause = FAST_SECONDS_PER_UPDATE if key == self._runs[FAST] else SECONDS_PER_UPDATE
        async with AirflowSql.open(self._url) as airflow:
            instance = await airflow.connection.fetchval(
                "SELECT id FROM task_instance WHERE dag_id = $1 AND run_id = $2 AND task_id = 'ask'", *key
            )
            statement = await airflow.connection.prepare(UPDATE)
            for state in itertools.cycle(STATES):
                self._numbers[key] = await statement.fetchval(instance, state)
                if stopping.is_set():
                    return
                await asyncio.sleep(pause)

    async def _run_to_end(self, number: int, stopping: asyncio.Event) -> None:
        """Bring one run after the other to its end, each with clients that watch all of it."""
        async with AirflowSql.open(self._url) as airflow, httpx.AsyncClient(timeout=30) as client:
            for count in itertools.count():
                if stopping.is_set():
                    return
                key = RunKey("short", f"manual__{time.monotonic_ns()}_{number}_{count}")
                await airflow.trigger(key, self._short, list(CHAIN))
                opened = {index: asyncio.Event() for index, kind in enumerate(WATCHERS) if kind != "result"}
                watchers = [
                    asyncio.create_task(
                        self._wait_for_result(client, key)
                        if kind == "result"
                        else watch_to_end(self._ports, key, kind, self.tally, opened[index].set)
                    )
                    for index, kind in enumerate(WATCHERS)
                ]
                await asyncio.gather(*(event.wait() for event in opened.values()))
                await airflow.complete_chain(key)
                await airflow.set_task(key, "clean_up", "success")
                await airflow.set_run(key, "success")
                await asyncio.gather(*watchers)

    async def _wait_for_result(self, client: httpx.AsyncClient, key: RunKey) -> None:
        """Wait for the result of a run, with as many calls as needed; some calls are abandoned."""
        while True:
            self.tally.visits["result"] += 1
            path = f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id}/result?timeout=20s"
            limit = random.uniform(0.05, 0.5) if random.random() < 0.2 else 30
            with suppress(httpx.TransportError), anyio.move_on_after(limit):
                answer = await client.get(f"http://{LOOPBACK}:{random.choice(self._ports)}{path}")
                if answer.status_code == httpx.codes.OK:
                    if answer.json().get("results") != {"answer": {"text": "because"}}:
                        self.tally.misses.append(f"{key.run_id}: {answer.text}")
                    self.tally.completed += 1
                    return
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def _inject_faults(self, seconds: float, rounds: int) -> None:
        """Terminate connections to PostgreSQL, stop one of the servers, and kill it, in turn."""
        latest_start = time.monotonic() + 0.75 * seconds - FAULT_SECONDS / 2
        connection = await asyncpg.connect(self._url)
        try:
            for number, fault in enumerate(itertools.cycle(FAULTS)):
                if number >= rounds * len(FAULTS) and (not rounds or time.monotonic() > latest_start):
                    return
                await asyncio.sleep(min(FAULT_SECONDS, seconds / 6))
                self.faults[fault] += 1
                if fault == "reconnect":
                    await terminate_connections(connection)
                    continue
                end_signal = signal.SIGTERM if fault == "drain" else signal.SIGKILL
                await asyncio.to_thread(self._restarted.child.stop, 10.0, end_signal)
                await asyncio.to_thread(self._restarted.start)
        finally:
            await connection.close()

    async def _sample(self) -> None:
        while True:
            state, second = await self._steady.read_state(), time.monotonic() - self._began
            self.samples.append((second, state))
            print(f"{second:.0f} s: {state}, {self.tally.frames} frames", flush=True)  # noqa: T201
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _close_abandoned(self) -> None:
        """Close connections abandoned long ago, to bound open files. The servers must have closed them already."""
        abandoned = self.tally.abandoned
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            open_connections = await asyncio.to_thread(self._server_connections)
            while abandoned and abandoned[0].abandoned_at < time.monotonic() - ABANDON_SECONDS:
                one = abandoned.popleft()
                self.closed_abandoned += 1
                transport = one.connection.transport
                ends = tuple(tuple(transport.get_extra_info(end)) for end in ("peername", "sockname"))
                # A connection that was closing is closed by now, and its port may belong to another client.
                if not transport.is_closing() and ends in open_connections:
                    self.tally.misses.append(f"{one.connection} vanished {ABANDON_SECONDS:g} s ago, and is open")
                one.connection.disconnect("reset")

    def _server_connections(self) -> set[tuple[object, ...]]:
        """Return both addresses of each connection that a server has open."""
        return {
            (tuple(one.laddr), tuple(one.raddr))
            for one in psutil.net_connections("tcp")
            if one.pid is not None and one.raddr and one.laddr in {(LOOPBACK, port) for port in self._ports}
        }

    async def _wait_for_permanent_clients(self, permanent_clients: list[Client]) -> None:
        """Wait until permanent clients have received the last number of their runs."""

        def runs_behind() -> list[str]:
            return [one for client in permanent_clients for one in client.runs_behind(self._numbers)]

        async def have_caught_up() -> bool:
            return not runs_behind()

        self.permanent += len(permanent_clients)
        try:
            await eventually_answered(have_caught_up, within=40)
        except AssertionError:
            self.late += runs_behind()

    def _spare_objects(self) -> float:
        return OBJECTS_LEFT + OBJECTS_PER_VISIT * sum(self.tally.visits.values())

    async def _wait_until_idle(self, most_objects: float = math.inf) -> ServerState:
        """Wait until the servers have released all clients, also those whose abandoned sockets are still open."""

        async def is_idle() -> bool:
            state = await self._steady.read_state(thorough=True)
            await asyncio.sleep(POLL_SECONDS)  # because the server lists its sockets for each answer
            return not (state.subscriptions or state.runs or state.sockets) and state.objects <= most_objects

        with suppress(AssertionError):
            await eventually_answered(is_idle, within=ABANDON_SECONDS)
        return await self._steady.read_state(thorough=True)

    def report(self) -> dict[str, Any]:
        """Return the figures, and as misses what was wrong."""
        tally, before, after = self.tally, self.before, self.after
        length = self.samples[-1][0]
        early = max(state.memory for second, state in self.samples if 0.3 * length <= second <= 0.6 * length)
        late = max(state.memory for second, state in self.samples if second >= 0.7 * length)
        objects = after.objects - before.objects
        counted = ("subscriptions", "runs", "tasks", "sockets", "files")
        left = {name: (getattr(before, name), getattr(after, name)) for name in counted}
        misses = [*tally.misses[:20]]
        misses += [f"{count} frames {what}" for what, count in tally.lost_updates().items() if count]
        # A client that subscribes just after a server lost its database gets a reset: the rows may no longer exist.
        unexpected_resets = {why: count for why, count in tally.resets.items() if why != "journal_changed"}
        misses += [f"{count} clients got a reset: {why}" for why, count in unexpected_resets.items()]
        misses += [f"did not catch up: {one}" for one in self.late[:20]]
        misses += [f"{a} {name} before, {b} after" for name, (a, b) in left.items() if b > a + SPARE.get(name, 0)]
        if late / early > GROWTH and self._is_long:
            misses.append(f"memory grew by {late / early:.2f}")
        if objects > self._spare_objects():
            misses.append(f"{objects} objects are left of {sum(tally.visits.values())} visits")
        misses += [f"nothing was {what}" for what, happened in self._missing_conditions().items() if not happened]
        return {
            "check": "clients",
            "seconds": round(self.seconds),
            "clients": self._clients,
            "most_streams": max(state.subscriptions for _, state in self.samples),
            "permanent": self.permanent,
            "visits": dict(tally.visits),
            "disconnects": dict(tally.disconnects),
            "vanished_long_ago": self.closed_abandoned,
            "frames": tally.frames,
            **tally.lost_updates(),
            "repeated": tally.repeated,
            "resumed": tally.resumed,
            "resets": dict(tally.resets),
            "closes": {str(code): count for code, count in tally.closes.items()},
            "cut": tally.cut,
            "refused": tally.refused,
            "watched_to_the_end": tally.completed,
            "faults": dict(self.faults),
            "memory_mib": [round(early / 2**20, 1), round(late / 2**20, 1)],
            "objects_left": objects,
            "types_left": dict((Counter(after.types) - Counter(before.types)).most_common(8)),
            "idle": left,
            "states": after.states,
            "misses": misses,
        }

    def _missing_conditions(self) -> dict[str, object]:
        """Return the conditions that must occur for the check to mean anything, and did not."""
        return {
            "resumed": self.tally.resumed,
            "closed as too slow": self.tally.closes[4002] or not self._is_long,
            "drained": self.tally.closes[4001] or not self.faults["drain"],
            "abandoned": self.tally.disconnects["vanish"],
            "watched to the end": self.tally.completed,
        }


SPARE = {"tasks": 2, "files": 6}
"""Tasks and files that may be added without a leak: pooled database connections, and requests in progress."""


async def soak_clients(url: str, seconds: float, clients: int, rounds: int = 1) -> dict[str, Any]:
    """Run the soak on a database with the journal; return figures, seed and misses."""
    seed = os.environ.get("STREAM_SERVER_SEED") or secrets.token_hex(4)
    print(f"STREAM_SERVER_SEED={seed}", flush=True)  # noqa: T201 # shown where the test fails
    random.seed(seed)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    with TemporaryDirectory() as logs:
        steady, restarted = (SoakServerProcess(name, Path(logs), url) for name in ("steady", "restarted"))
        try:
            for replica in (steady, restarted):
                await asyncio.to_thread(replica.start)
            soak = ClientSoak(url, steady, restarted, clients)
            with anyio.fail_after(2 * seconds + CATCH_UP_SECONDS):
                await soak.run(seconds, rounds)
            return {"seed": seed, **soak.report()}
        finally:
            for replica in (steady, restarted):
                replica.child.stop()


def main() -> int:
    """Run the soak. The exit status is 1 if there are misses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=2000)
    arguments = parser.parse_args()
    with running_postgres() as postgres:
        database = asyncio.run(create_database_with_journal(postgres))
        try:
            report = asyncio.run(soak_clients(postgres.url(database), 60 * arguments.minutes, arguments.clients))
        finally:
            drop_database(postgres, database)
    print(json.dumps(report))  # noqa: T201
    return 1 if report["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())
