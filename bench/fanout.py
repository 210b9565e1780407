"""Fan-out: one frame to many clients, beside sse-starlette with a queue for each client and nginx with nchan.

Each candidate serves in turn, in every round, on the first core; the load generator has the last core to itself and
publishes too. CPU time of the server per delivered frame is the figure to compare: latencies include the generator's
own queueing, which is the same for all. Our own server has three entries: writing directly to its connections, using
ASGI's `send` as under another server, and WebSocket.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench.fanout_candidates import (
    ALL,
    ASGI,
    NCHAN_SSE,
    NCHAN_WEBSOCKET,
    SSE,
    SSE_STARLETTE,
    WEBSOCKET,
    running_candidate,
)
from bench.fanout_clients import Load, ReadResult, run_generator
from bench.recorder import BenchmarkError
from bench.testbed import raise_on_sigterm

OWN_RUNS = "own runs, 200/s"
SETTLE_SECONDS = 1.0
IDLE_SECONDS = 16.0
"""Longer than the silence after which a ping is sent, so that each client gets one."""

LEAST_FRAMES = 3


@dataclass(frozen=True)
class TargetFigure:
    """A target for a figure."""

    text: str
    figure: float
    most: float

    @property
    def is_missed(self) -> bool:
        return self.figure > self.most


@dataclass
class CandidateRun:
    """The figures of one candidate in one round."""

    rss_kib: float
    """Of the server, per connection, when all are connected and nothing has been published."""

    connects: float
    """Per second."""

    idle: float | None
    """Share of a core that it needs where nothing happens, pings included."""

    reads: dict[str, ReadResult]
    cpu_us: dict[str, float]
    """Of the server per delivered frame, by load."""


class Generator:
    """Our end of the load generator."""

    def __init__(self, core: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        self._process = context.Process(target=run_generator, args=(theirs, core), daemon=True)
        self._process.start()
        theirs.close()

    def request(self, *request: object, within: float = 300.0) -> Any:  # noqa: ANN401 (each request has its own answer)
        try:
            self._control.send(request)
            if not self._control.poll(within):
                raise BenchmarkError(f"The load generator did not answer within {within:g} s")
            answer = self._control.recv()
        except (OSError, EOFError) as error:
            raise BenchmarkError("The load generator ended early; see its error above") from error
        if isinstance(answer, BenchmarkError):
            raise answer
        return answer

    def close(self) -> None:
        self._control.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()


def main() -> int:
    """Run the benchmark. A missed target is reported, and is not an error. Interrupted, it reports what it has."""
    arguments = _arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    turns: defaultdict[tuple[int, str], list[CandidateRun]] = defaultdict(list)
    absent: dict[str, str] = {}
    code = 0
    with raise_on_sigterm():
        try:
            _run_candidates(turns, absent, arguments)
        except (BenchmarkError, psutil.Error, OSError) as error:
            print(f"The benchmark broke: {error}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            code = 130
        except SystemExit as terminated:
            code = int(terminated.code or 0)
    if turns:
        _print_report(turns, absent, arguments, complete=code == 0)
    return code


def _run_candidates(
    turns: defaultdict[tuple[int, str], list[CandidateRun]], absent: dict[str, str], arguments: argparse.Namespace
) -> None:
    """Run each candidate with each number of clients, in every round."""
    for number in range(1, arguments.rounds + 1):
        for clients in arguments.clients:
            for name in arguments.only:
                print(f"round {number}: {clients} clients, {name}", file=sys.stderr, flush=True)
                try:
                    turns[clients, name].append(_run_candidate(name, clients, number == 1, arguments))
                except FileNotFoundError as error:
                    absent[name] = str(error)


def _print_report(
    turns: dict[tuple[int, str], list[CandidateRun]],
    absent: dict[str, str],
    arguments: argparse.Namespace,
    *,
    complete: bool,
) -> None:
    figures = {f"{clients} {name}": _figures(each) for (clients, name), each in turns.items() if each}
    _show(figures)
    targets = _compare_with_targets(figures, arguments)
    print(
        json.dumps(
            {
                "benchmark": "fanout",
                "complete": complete,
                "rounds": arguments.rounds,
                "clients": arguments.clients,
                "figures": figures,
                "targets": {target.text: [round(target.figure, 3), target.most] for target in targets},
                "absent": absent,
                "misses": _misses(figures, targets, absent),
            }
        )
    )


def _run_candidate(name: str, clients: int, measure_idle: bool, arguments: argparse.Namespace) -> CandidateRun:
    """Run one candidate with all loads."""
    cores = psutil.Process().cpu_affinity()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fanout-")))
        turn: CandidateRun | None = None
        # Slow measurements use the largest number of clients.
        most = clients == max(arguments.clients)
        for runs in (1, clients) if arguments.own_runs and most else (1,):
            with (
                running_candidate(name, directory, runs=runs, core=cores[0]) as serving,
                _generator(cores[-1]) as generator,
            ):
                generator.request("target", serving.target)
                empty = serving.rss()
                seconds = generator.request("connect", clients, runs)
                time.sleep(SETTLE_SECONDS)
                if turn is None:
                    turn = CandidateRun((serving.rss() - empty) / clients / 1024, clients / seconds, None, {}, {})
                    if measure_idle and arguments.idle and most:
                        used = serving.cpu()
                        time.sleep(IDLE_SECONDS)
                        turn.idle = (serving.cpu() - used) / IDLE_SECONDS
                first = 1
                for what, load in _loads(runs, arguments):
                    used = serving.cpu()
                    read: ReadResult = generator.request("publish", load._replace(first=first))
                    turn.reads[what] = read
                    turn.cpu_us[what] = 1e6 * (serving.cpu() - used) / max(1, read.delivered)
                    first += read.published
                generator.request("close")
        assert turn is not None, "there was a load"
        return turn


def _loads(runs: int, arguments: argparse.Namespace) -> Iterator[tuple[str, Load]]:
    if runs > 1:
        yield OWN_RUNS, Load(200.0, 1, arguments.seconds, 0, runs)
        return
    for rate in arguments.rates:
        yield f"{rate:g}/s", Load(rate, 1, max(arguments.seconds, LEAST_FRAMES / rate), 0, runs)
    if arguments.burst > 1:
        yield f"bursts of {arguments.burst}", Load(1.0, arguments.burst, arguments.seconds, 0, runs)


@contextmanager
def _generator(core: int) -> Iterator[Generator]:
    generator = Generator(core)
    try:
        yield generator
    finally:
        generator.close()


def _figures(turns: list[CandidateRun]) -> dict[str, Any]:
    """Return medians over the rounds."""
    loads = {}
    for what in turns[0].reads:
        reads = [turn.reads[what] for turn in turns]
        loads[what] = {
            "server_us_per_frame": round(statistics.median(turn.cpu_us[what] for turn in turns), 2),
            "of_rounds": [round(turn.cpu_us[what], 2) for turn in turns],
            "client_us_per_frame": round(
                statistics.median(1e6 * read.client_cpu / max(1, read.delivered) for read in reads), 2
            ),
            "p50_ms": round(statistics.median(percentile(read.latencies, 0.5) for read in reads), 2),
            "p99_ms": round(statistics.median(percentile(read.latencies, 0.99) for read in reads), 2),
            "delivered_per_s": round(statistics.median(read.delivered / read.seconds for read in reads)),
            "expected": sum(read.expected for read in reads),
            "lost": sum(read.lost for read in reads),
            "doubled": sum(read.doubled for read in reads),
        }
    idle = [turn.idle for turn in turns if turn.idle is not None]
    return {
        "rss_kib_per_connection": round(statistics.median(turn.rss_kib for turn in turns), 2),
        "connects_per_s": round(statistics.median(turn.connects for turn in turns)),
        "idle_share_of_a_core": round(statistics.median(idle), 4) if idle else None,
        "loads": loads,
    }


def percentile(ordered: list[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))] if ordered else float("nan")


def _compare_with_targets(figures: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> list[TargetFigure]:
    """Compare with the targets for which figures were measured."""
    most = max(arguments.clients)
    by_name = {name: figures[f"{most} {name}"] for name in ALL if f"{most} {name}" in figures}
    targets = []

    def us(name: str, what: str) -> float | None:
        found = by_name.get(name, {}).get("loads", {}).get(what, {})
        return float(found["server_us_per_frame"]) if found else None

    for rate in (f"{rate:g}/s" for rate in arguments.rates):
        for ours, theirs, ratio in (
            (SSE, NCHAN_SSE, 1.0),
            (ASGI, NCHAN_SSE, 1.2),
            (SSE, SSE_STARLETTE, 0.2),
            (WEBSOCKET, NCHAN_WEBSOCKET, 1.3),
        ):
            one, other = us(ours, rate), us(theirs, rate)
            if one is not None and other:
                targets.append(TargetFigure(f"CPU per frame, {ours} to {theirs}, {rate}", one / other, ratio))
    for name, kib in ((SSE, 12.0), (WEBSOCKET, 20.0)):
        if name in by_name:
            targets.append(
                TargetFigure(f"KiB per idle connection, {name}", by_name[name]["rss_kib_per_connection"], kib)
            )
            burst = us(name, f"bursts of {arguments.burst}")
            if burst is not None:
                targets.append(TargetFigure(f"µs per frame of a burst, {name}", burst, 2.0))
            idle = by_name[name]["idle_share_of_a_core"]
            if idle is not None:
                targets.append(TargetFigure(f"share of a core where nothing happens, {name}", idle, 0.02))
            targets.append(
                TargetFigure(f"seconds to connect {most}, {name}", most / by_name[name]["connects_per_s"], 30.0)
            )
    if SSE in by_name and SSE_STARLETTE in by_name:
        share = by_name[SSE_STARLETTE]["connects_per_s"] / by_name[SSE]["connects_per_s"]
        targets.append(TargetFigure(f"connects per second, {SSE_STARLETTE} to {SSE}", share, 0.2))
    return targets


def _misses(figures: dict[str, dict[str, Any]], targets: list[TargetFigure], absent: dict[str, str]) -> list[str]:
    found = [
        f"{target.text}: {target.figure:.3g}; the target is {target.most:g}" for target in targets if target.is_missed
    ]
    for name, each in figures.items():
        if not name.endswith((SSE, ASGI, WEBSOCKET)):
            continue
        for what, load in each["loads"].items():
            found += [f"{name}, {what}: {load[wrong]} frames {wrong}" for wrong in ("lost", "doubled") if load[wrong]]
    return found + [f"{name} is absent: {why}" for name, why in absent.items()]


def _show(figures: dict[str, dict[str, Any]]) -> None:
    table = Table(title="Medians of all rounds", title_justify="left")
    columns = ("", "load", "server µs/frame", "client µs/frame", "p50 ms", "p99 ms", "frames/s", "lost", "doubled")
    for column in columns:
        table.add_column(column, justify="left" if column in {"", "load"} else "right")
    for name, each in figures.items():
        for what, load in each["loads"].items():
            keys = ("server_us_per_frame", "client_us_per_frame", "p50_ms", "p99_ms", "delivered_per_s")
            table.add_row(name, what, *(f"{load[key]:g}" for key in (*keys, "lost", "doubled")))
    console = Console(width=max(140, Console().width), file=sys.stderr)
    console.print(table)
    for name, each in figures.items():
        idle = each["idle_share_of_a_core"]
        console.print(
            f"{name}: {each['rss_kib_per_connection']:g} KiB a connection, {each['connects_per_s']} connects/s"
            + ("" if idle is None else f", {idle:.2%} of a core where nothing happens"),
            highlight=False,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-fanout", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000, 10_000], help="(default: %(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 10.0], help="frames/s (default: %(default)s)")
    parser.add_argument("--burst", type=int, default=16, help="frames due at once (default: %(default)d)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a load (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)d)")
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL), help="candidates (default: all)")
    parser.add_argument("--no-idle", dest="idle", action="store_false", help="don't measure what idleness costs")
    parser.add_argument(
        "--no-own-runs", dest="own_runs", action="store_false", help="leave out a run of its own for each client"
    )
    arguments = parser.parse_args()
    if min(*arguments.clients, *arguments.rates, arguments.seconds, arguments.burst, arguments.rounds) <= 0:
        parser.error("all numbers must be positive")
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed: one for the server, one for the load generator")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
