"""Thousands of clients that come and go for a while: nothing may be left behind, lost or told twice.

`python -m support.client_soak --minutes 30 [--clients 2000]`. Two servers follow a journal that is written all the
while; one of them is stopped and killed again and again, and both lose their connections to PostgreSQL. Clients of all
kinds watch: some stay, some are slow, most leave, also without a word, and come back to whichever server. It prints a
line for each sample, and its last line is JSON: figures and misses.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import resource
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
from stream_server.journal.installer import install_journal
from support.airflow_sql import CHAIN, AirflowSql
from support.postgres import create_database_from_airflow_template, drop_database, running_postgres
from support.server import cut_off
from support.soak_clients import FAST, KINDS, Client, Tally, hear_all
from support.soak_server import Hands
from support.soak_server_process import PING_SECONDS, Replica
from support.waiting import eventually_answered

DAG_ID = "pulse"
RUNS = 16
SECONDS_PER_PULSE = 1.0
FAST_SECONDS_PER_PULSE = 1 / 150
STATES = ("scheduled", "queued", "running", "deferred")

GIVEN_UP_SECONDS = 30 * PING_SECONDS
"""How long after that they must be given up at the latest; the machine may be busy."""

WATCHERS = (*("sse", "websocket") * 2, "result", "result")
"""Of each run that is run to its end."""

STAYING = 0.4
"""Share of the clients that leave only at the end."""

SLOW = 10
FIREHOSES = 5
FAULT_SECONDS = 12.0
SAMPLE_SECONDS = 5.0
PATIENCE_SECONDS = 180.0
"""For all that comes before and after."""

GROWTH = 1.15
"""How much larger the peak of memory may be at the end than after the first third."""

WARM_SECONDS = 60.0
"""Before that memory may grow: not all has been done once."""

OBJECTS_LEFT, OBJECTS_PER_VISIT = 1000, 0.02
"""That may be more than before: what is kept of things that were done for the first time, and of each visit."""

PULSE = "UPDATE task_instance SET state = $2, try_number = try_number + 1 WHERE id = $1 RETURNING try_number"


class ClientSoak:
    """One load, two servers and all their clients."""

    def __init__(self, url: str, steady: Replica, troubled: Replica, clients: int) -> None:
        self._url = url
        self._steady = steady
        self._troubled = troubled
        self._ports = [steady.port, troubled.port]
        self._clients = clients
        self._numbers: dict[RunKey, int] = {}
        self._runs = [RunKey(DAG_ID, f"manual__{number:02}_{'x' * 200}") for number in range(RUNS)]
        self.tally = Tally()
        self.faults: Counter[str] = Counter()
        self.samples: list[tuple[float, Hands]] = []
        self.late: list[str] = []
        self.stayed = 0
        self.buried = 0

    async def run(self, seconds: float) -> None:
        """Begin with a small wave, by which all is loaded that is loaded once; then do it for so long."""
        await self._prepare()
        await self._wave(3.0, min(self._clients, 60), faults=False)
        self.before = await self._idle()
        self.tally.visits.clear()
        self._began = time.monotonic()
        sampler, undertaker = asyncio.create_task(self._sample()), asyncio.create_task(self._bury())
        await self._wave(seconds, self._clients, faults=True)
        sampler.cancel()
        self.after = await self._idle()
        undertaker.cancel()
        for ended in await asyncio.gather(sampler, undertaker, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                self.tally.misses.append(f"the soak itself: {ended!r}")
        for ghost in self.tally.ghosts:
            ghost.connection.leave("reset")
        self.seconds = time.monotonic() - self._began

    async def _prepare(self) -> None:
        async with AirflowSql.open(self._url) as airflow:
            version = await airflow.add_dag(DAG_ID, CHAIN, {"clean_up": False})
            self._short = await airflow.add_dag("short", CHAIN, {"clean_up": False})
            for key in self._runs:
                await airflow.trigger(key, version, list(CHAIN))

    async def _wave(self, seconds: float, count: int, *, faults: bool) -> None:
        """Have clients come and go, and in the end hold what those know who stay against what was written."""
        stopping, going = asyncio.Event(), asyncio.Event()
        clients = self._make_clients(count)
        # One after the other: that all come at once is for benchmarks.
        visitors = []
        work = [asyncio.create_task(self._beat(key, stopping)) for key in self._runs]
        work += [asyncio.create_task(self._live(number, stopping)) for number in range(2)]
        if faults:
            work.append(asyncio.create_task(self._harm(seconds)))
        for client in clients:
            visitors.append(asyncio.create_task(client.come_and_go(going)))
            await asyncio.sleep(min(0.01, 0.1 * seconds / count))
        ended, _ = await asyncio.wait([*work, *visitors], timeout=0.85 * seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in ended:
            task.result()
        stopping.set()
        await asyncio.gather(*work)
        await self._judge_stayers([client for client in clients if client.stays])
        going.set()
        for visitor in visitors:
            visitor.cancel()
        await asyncio.gather(*visitors, return_exceptions=True)

    def _make_clients(self, count: int) -> list[Client]:
        kinds = ["slow"] * SLOW + ["firehose"] * FIREHOSES
        kinds += itertools.islice(itertools.cycle(KINDS[:4]), max(0, count - len(kinds)))
        return [
            Client(kind, self._ports, self._runs, self.tally, stays=kind == "slow" or number % 10 < 10 * STAYING)
            for number, kind in enumerate(kinds)
        ]

    async def _beat(self, key: RunKey, stopping: asyncio.Event) -> None:
        """Count a run through."""
        pause = FAST_SECONDS_PER_PULSE if key == self._runs[FAST] else SECONDS_PER_PULSE
        async with AirflowSql.open(self._url) as airflow:
            instance = await airflow.connection.fetchval(
                "SELECT id FROM task_instance WHERE dag_id = $1 AND run_id = $2 AND task_id = 'ask'", *key
            )
            statement = await airflow.connection.prepare(PULSE)
            for state in itertools.cycle(STATES):
                self._numbers[key] = await statement.fetchval(instance, state)
                if stopping.is_set():
                    return
                await asyncio.sleep(pause)

    async def _live(self, number: int, stopping: asyncio.Event) -> None:
        """Run one run after the other to its end, each with those who hear all of it."""
        async with AirflowSql.open(self._url) as airflow, httpx.AsyncClient(timeout=30) as client:
            for count in itertools.count():
                if stopping.is_set():
                    return
                key = RunKey("short", f"manual__{time.monotonic_ns()}_{number}_{count}")
                await airflow.trigger(key, self._short, list(CHAIN))
                opened = {index: asyncio.Event() for index, kind in enumerate(WATCHERS) if kind != "result"}
                watchers = [
                    asyncio.create_task(
                        self._ask(client, key)
                        if kind == "result"
                        else hear_all(self._ports, key, kind, self.tally, opened[index].set)
                    )
                    for index, kind in enumerate(WATCHERS)
                ]
                await asyncio.gather(*(event.wait() for event in opened.values()))
                await airflow.answer(key)
                await airflow.set_task(key, "clean_up", "success")
                await airflow.set_run(key, "success")
                await asyncio.gather(*watchers)

    async def _ask(self, client: httpx.AsyncClient, key: RunKey) -> None:
        """Wait for the result of a run, however often that must be asked; one call of many is given up."""
        while True:
            self.tally.visits["result"] += 1
            path = f"/api/v2/dags/{key.dag_id}/dagRuns/{key.run_id}/result?timeout=20s"
            patience = random.uniform(0.05, 0.5) if random.random() < 0.2 else 30
            with suppress(httpx.TransportError), anyio.move_on_after(patience):
                answer = await client.get(f"http://{LOOPBACK}:{random.choice(self._ports)}{path}")
                if answer.status_code == httpx.codes.OK:
                    if answer.json().get("results") != {"answer": {"text": "because"}}:
                        self.tally.misses.append(f"{key.run_id}: {answer.text}")
                    self.tally.answered += 1
                    return
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def _harm(self, seconds: float) -> None:
        """Take connections to PostgreSQL away, stop one of the servers, and kill it, in turn."""
        until = time.monotonic() + 0.75 * seconds
        deck = itertools.cycle(("reconnect", "drain", "reconnect", "kill"))
        connection = await asyncpg.connect(self._url)
        try:
            while time.monotonic() + FAULT_SECONDS / 2 < until:
                await asyncio.sleep(min(FAULT_SECONDS, seconds / 6))
                fault = next(deck)
                self.faults[fault] += 1
                if fault == "reconnect":
                    await cut_off(connection)
                    continue
                sign = signal.SIGTERM if fault == "drain" else signal.SIGKILL
                await asyncio.to_thread(self._troubled.child.stop, 10.0, sign)
                await asyncio.to_thread(self._troubled.start)
        finally:
            await connection.close()

    async def _sample(self) -> None:
        while True:
            hands, second = await self._steady.hands(), time.monotonic() - self._began
            self.samples.append((second, hands))
            print(f"{second:.0f} s: {hands}, {self.tally.frames} frames", flush=True)  # noqa: T201
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _bury(self) -> None:
        """Close what vanished long ago, so that open files suffice for any length; the servers must have done so."""
        ghosts = self.tally.ghosts
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            held = await asyncio.to_thread(self._held)
            while ghosts and ghosts[0].left_at < time.monotonic() - GIVEN_UP_SECONDS:
                ghost = ghosts.popleft()
                self.buried += 1
                transport = ghost.connection.transport
                ends = tuple(tuple(transport.get_extra_info(end)) for end in ("peername", "sockname"))
                # Whoever was about to say good-bye has gone by himself since; his port may be another's.
                if not transport.is_closing() and ends in held:
                    self.tally.misses.append(f"{ghost.connection} vanished {GIVEN_UP_SECONDS:g} s ago, and is open")
                ghost.connection.leave("reset")

    def _held(self) -> set[tuple[object, ...]]:
        """Return the two ends of each connection that a server has open."""
        return {
            (tuple(one.laddr), tuple(one.raddr))
            for one in psutil.net_connections("tcp")
            if one.pid is not None and one.raddr and one.laddr in {(LOOPBACK, port) for port in self._ports}
        }

    async def _judge_stayers(self, stayers: list[Client]) -> None:
        """Wait until those who stay know the last number of their runs."""

        def behind() -> list[str]:
            return [one for client in stayers for one in client.behind(self._numbers)]

        async def caught_up() -> bool:
            return not behind()

        self.stayed += len(stayers)
        try:
            await eventually_answered(caught_up, within=40)
        except AssertionError:
            self.late += behind()

    async def _idle(self) -> Hands:
        """Wait until nothing is left of all clients; those that vanished have left their sockets open."""

        async def idle() -> bool:
            hands = await self._steady.hands()
            return not (hands.subscriptions or hands.runs or hands.sockets)

        with suppress(AssertionError):
            await eventually_answered(idle, within=GIVEN_UP_SECONDS)
        return await self._steady.hands(thorough=True)

    def verdict(self) -> dict[str, Any]:
        """Return figures and misses."""
        tally, before, after = self.tally, self.before, self.after
        length = self.samples[-1][0]
        early = max(hands.memory for second, hands in self.samples if 0.3 * length <= second <= 0.6 * length)
        late = max(hands.memory for second, hands in self.samples if second >= 0.7 * length)
        visits = sum(tally.visits.values())
        objects = after.objects - before.objects
        left = {
            name: (getattr(before, name), getattr(after, name))
            for name in ("subscriptions", "runs", "tasks", "sockets", "files")
        }
        misses = [*tally.misses[:20]]
        misses += [f"{count} frames {what}" for what, count in _lost(tally).items() if count]
        # Who joined when a server had just lost its database is told so: nobody can say whether what was read is there.
        anew = {why: count for why, count in tally.resets.items() if why != "journal_changed"}
        misses += [f"{count} clients were told to begin anew: {why}" for why, count in anew.items()]
        misses += [f"did not catch up: {one}" for one in self.late[:20]]
        misses += [f"{a} {name} before, {b} after" for name, (a, b) in left.items() if b > a + SPARE.get(name, 0)]
        if late / early > GROWTH and self.seconds > WARM_SECONDS:
            misses.append(f"memory grew by {late / early:.2f}")
        if objects > OBJECTS_LEFT + OBJECTS_PER_VISIT * visits:
            misses.append(f"{objects} objects are left of {visits} visits")
        misses += [f"nothing was {what}" for what, happened in self._provoked().items() if not happened]
        return {
            "check": "clients",
            "seconds": round(self.seconds),
            "clients": self._clients,
            "most_streams": max(hands.subscriptions for _, hands in self.samples),
            "stayed": self.stayed,
            "visits": dict(tally.visits),
            "left": dict(tally.left),
            "vanished_long_ago": self.buried,
            "frames": tally.frames,
            **_lost(tally),
            "repeated": tally.repeated,
            "resumed": tally.resumed,
            "resets": dict(tally.resets),
            "closes": {str(code): count for code, count in tally.closes.items()},
            "cut": tally.cut,
            "refused": tally.refused,
            "heard_to_the_end": tally.answered,
            "faults": dict(self.faults),
            "memory_mib": [round(early / 2**20, 1), round(late / 2**20, 1)],
            "objects_left": objects,
            "idle": left,
            "states": after.states,
            "misses": misses,
        }

    def _provoked(self) -> dict[str, object]:
        """Return what must have happened for the check to have checked anything."""
        tally = self.tally
        return {
            "resumed": tally.resumed,
            "told to be too slow": tally.closes[4002] or self.seconds < WARM_SECONDS,
            "drained": tally.closes[4001] or not self.faults["drain"],
            "left without a word": tally.left["vanish"],
            "heard to the end": tally.answered,
        }


SPARE = {"tasks": 2, "files": 6}
"""More than before that is no leak: a pool of connections to the database that has filled since, what is under way."""


def _lost(tally: Tally) -> dict[str, int]:
    return {"lost": tally.lost, "doubled": tally.doubled}


async def soak_clients(url: str, seconds: float, clients: int) -> dict[str, Any]:
    """Run all of it on a database with the journal, and return figures and misses."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with TemporaryDirectory() as logs:
        steady, troubled = (Replica(name, Path(logs), url) for name in ("steady", "troubled"))
        try:
            for replica in (steady, troubled):
                await asyncio.to_thread(replica.start)
            soak = ClientSoak(url, steady, troubled, clients)
            with anyio.fail_after(2 * seconds + PATIENCE_SECONDS):
                await soak.run(seconds)
            return soak.verdict()
        finally:
            for replica in (steady, troubled):
                replica.child.stop()


def main() -> int:
    """Run for a while; the exit status tells whether anything was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=2000)
    arguments = parser.parse_args()
    with running_postgres() as postgres:
        database = create_database_from_airflow_template(postgres)
        url = postgres.url(database)
        try:
            asyncio.run(install_journal(url, "public", lock_timeout=5, attempts=1))
            verdict = asyncio.run(soak_clients(url, 60 * arguments.minutes, arguments.clients))
        finally:
            drop_database(postgres, database)
    print(json.dumps(verdict))  # noqa: T201
    return 1 if verdict["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())
