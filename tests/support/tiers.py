"""Runs test tiers, three at a time: `python tests/support/tiers.py [--fast | --unit] [ARGUMENT ...]`.

The arguments are those of pytest.

The output of a tier is printed when it ends; that of failed tiers comes last. A table of times follows. The exit code
is that of the first failed tier. A tier without tests for the arguments is no failure, unless CI=true.

By default, all tiers run; with `--fast`, the unit tests and the integration tests that stop no server; with `--unit`,
the unit tests. If an argument is a path below `tests`, one pytest runs it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTEST = (sys.executable, "-m", "pytest")
LANES = 3
"""More than the cores of a small machine: most tests wait. With three tiers at a time, two cores idle a sixth of it."""

FAST = (
    *("ai_sdk", "auth", "auth_streams", "auth_websocket", "cors", "idempotency", "limits", "lists", "many_runs", "mcp"),
    *("mcp_messages", "openai", "openai_responses", "openai_retries", "pages", "redacted_output", "requests", "result"),
    *("resume", "schema", "session", "stream", "task_output", "tickets", "trigger", "trigger_rights", "wait"),
)
"""Integration tests that stop no server."""

FAULTS = (
    *("cancellation", "client_soak", "failover", "hostile_clients", "lossless", "mcp_scenarios", "other_cluster"),
    *("pooler", "proxies", "signal_drain", "standby", "trigger_safety", "workers"),
)
"""Integration tests that take longest: most break something, and wait until it works again."""

LONG = (
    *("api_check", "commands", "database_urls", "doctor", "random_runs", "scenarios", "slow_clients"),
    *("terminal_answers", "trigger_statements"),
)
"""Other integration tests that take about as long as all that are in no list."""

OWN_AIRFLOW = ("demo_processes", "outcome_check")
"""Tests of `airflow` that use no stack of the session, whose scheduler would run beside them."""

WITHOUT_AIRFLOW = ("behind_proxies", "copilotkit", "example_page", "foreign_page", "typescript_client")
"""Tests of `browser` that need no Airflow. The others wait for runs, and would wait for these, too."""

CORE = ("domain", "hub", "journal")
"""Unit tests that take half of the time."""

SELECTIONS = ("--fast", "--unit")

NEXT_AIRFLOW = "3.4.0b2"
"""Version on which the tests with the marker `core` run, too, in an environment of their own."""

NEXT_AIRFLOW_PYTHON = (3, 11)
"""The oldest Python that it runs on."""

NO_TESTS = 5
"""Exit code of pytest."""


@dataclass
class Tier:
    """A tier of tests, and what became of it."""

    name: str
    command: tuple[str, ...]
    exit_code: int | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    output: str = ""

    @property
    def is_failed(self) -> bool:
        """Whether its exit code is a failure; a tier that was left out has none."""
        return self.exit_code not in ({0} if _in_ci() else {0, NO_TESTS})

    def run(self, running: dict[str, subprocess.Popen[bytes]]) -> None:
        """Run the tier, and record its exit code, output and times."""
        began = time.monotonic()
        with tempfile.TemporaryFile() as output:
            # In a session of its own, so that Ctrl-C does not interrupt pytest twice: `run_lanes` passes it on.
            child = subprocess.Popen(
                self.command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            running[self.name] = child
            _, status, usage = os.wait4(child.pid, 0)
            del running[self.name]
            output.seek(0)
            self.output = output.read().decode(errors="replace")
        child.returncode = self.exit_code = os.waitstatus_to_exitcode(status)
        self.seconds, self.cpu_seconds = time.monotonic() - began, usage.ru_utime + usage.ru_stime

    def describe(self) -> str:
        """Return the line of the table: name, wall and CPU time, exit code, and the counts of pytest."""
        counts = re.findall(
            r"^=*\s*(\d+ (?:passed|failed|error|skipped|deselected).*) in [\d.]+s", self.output, re.MULTILINE
        )
        what = counts[-1] if counts else ""
        return (
            f"{self.name:<20}{self.seconds:>7.0f} s{self.cpu_seconds:>7.0f} s CPU   exit code {self.exit_code}   {what}"
        )


def make_tiers(arguments: list[str], selection: str | None = None) -> list[Tier]:
    """Return the tiers in the order in which they start.

    `web` builds the TypeScript client. The first tier that uses it at once, `integration`, starts after `web`, the
    shortest of the first lanes, has ended. Most tests of `browser` share the Airflow of `airflow`. Otherwise, the
    longest tiers are first, and the shortest, which wait for nothing, last: all cores work until the end.
    """

    def others(directory: str, listed: list[str]) -> list[str]:
        """Return the other files and folders with tests."""
        files = ROOT.glob(f"tests/{directory}/**/test_*.py")
        first = {path.relative_to(ROOT / "tests" / directory).parts[0] for path in files}
        return sorted({f"{directory}/{name}" for name in first} - {*listed})

    def pytest(name: str, *directories: str) -> Tier:
        return Tier(name, (*PYTEST, *(f"tests/{directory}" for directory in directories), *arguments))

    steady, faults, long = ([f"integration/test_{name}.py" for name in names] for names in (FAST, FAULTS, LONG))
    core = [f"unit/{name}" for name in CORE]
    units = [pytest("unit, core", *core), pytest("unit", *others("unit", core))]
    if selection == "--unit":
        return units
    if selection == "--fast":
        return [*(pytest(f"integration, fast, {part}", *steady[part - 1 :: 2]) for part in (1, 2)), *units]
    own = [f"airflow/test_{name}.py" for name in OWN_AIRFLOW]
    pages = [f"browser/test_{name}.py" for name in WITHOUT_AIRFLOW]
    return [
        Tier("web", ("make", "--no-print-directory", "test-web")),
        pytest("airflow, browser", *others("airflow", own), *others("browser", pages)),
        pytest("matrix", "matrix"),
        pytest("faults", *faults),
        pytest("integration, long", *long),
        pytest("integration", *others("integration", steady + faults + long)),
        pytest("smoke", "smoke"),
        pytest("browser", *pages),
        pytest("integration, fast", *steady),
        *_make_next_airflow_tiers(arguments),
        pytest("demo, outcome", *own),
        *units,
    ]


def _make_next_airflow_tiers(arguments: list[str]) -> list[Tier]:
    """Return the tier with the next version of Airflow. It is left out, with a message, where no Python can run it."""
    python = sys.executable
    if sys.version_info < NEXT_AIRFLOW_PYTHON:
        names = (f"python3.{minor}" for minor in range(NEXT_AIRFLOW_PYTHON[1], 15))
        # Not all programs on PATH run: pyenv has one for each version that any environment has.
        python = next((name for name in names if shutil.which(name) and _is_executable(name)), "")
    if not python:
        _print(
            f"Left out: the tests on Airflow {NEXT_AIRFLOW}, which needs Python 3.11 or newer. This is Python"
            f" {sys.version.split()[0]}, and PATH has no newer one."
        )
        return []
    environment = f".venv-airflow-{NEXT_AIRFLOW}"
    make = ["make", "--no-print-directory", f"AIRFLOW={NEXT_AIRFLOW}", f"PYTHON={python}"]
    pytest = [f"{environment}/bin/python", "-m", "pytest", "tests/airflow", "-m", "core", *arguments]
    # Not `make test-airflow`: make would replace the exit code of pytest.
    script = f"{shlex.join([*make, f'{environment}/.dev', f'{environment}/.pages'])} && exec {shlex.join(pytest)}"
    return [Tier(f"airflow {NEXT_AIRFLOW}", ("sh", "-c", script))]


def _is_executable(program: str) -> bool:
    return subprocess.run([program, "-c", ""], stderr=subprocess.DEVNULL, check=False).returncode == 0


def run_lanes(todo: list[Tier]) -> None:
    """Run the tiers, `LANES` at a time, and print the output of each that passes.

    After SIGINT or SIGTERM, no more start, and those that run are interrupted.
    """
    waiting: queue.SimpleQueue[Tier] = queue.SimpleQueue()
    running: dict[str, subprocess.Popen[bytes]] = {}
    printing = threading.Lock()
    for tier in todo:
        waiting.put(tier)

    def run_lane() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                tier = waiting.get_nowait()
                _print(f"... {tier.name}")
                tier.run(running)
                with printing:
                    _print("" if tier.is_failed else _title(tier) + tier.output, tier.describe())

    def interrupt(*_: object) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        for child in list(running.values()):
            child.send_signal(signal.SIGINT)

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    lanes = [threading.Thread(target=run_lane) for _ in range(LANES)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def main(arguments: list[str]) -> int:
    """Run the tiers; return the exit code."""
    if any(argument.startswith("tests/") for argument in arguments):
        return subprocess.run([*PYTEST, *arguments], cwd=ROOT, check=False).returncode
    began = time.monotonic()
    selection = next((argument for argument in arguments if argument in SELECTIONS), None)
    todo = make_tiers([argument for argument in arguments if argument not in SELECTIONS], selection)
    run_lanes(todo)
    failed = [tier for tier in todo if tier.is_failed]
    for tier in failed:
        _print(_title(tier) + tier.output)
    _print(*(tier.describe() for tier in todo), _describe_total(todo, time.monotonic() - began))
    if failed:
        _print(f"Failed: {'; '.join(tier.name for tier in failed)}")
        return failed[0].exit_code or 1
    if not any(tier.exit_code == 0 for tier in todo if tier.name != "web"):
        _print("No test matches the arguments")
        return NO_TESTS
    return 0


def _describe_total(tiers: list[Tier], seconds: float) -> str:
    """Return the last line of the table, with the share of the time that the cores worked for the tiers."""
    cpu_seconds, cores = sum(tier.cpu_seconds for tier in tiers), os.cpu_count() or 1
    return (
        f"{'all':<20}{seconds:>7.0f} s{cpu_seconds:>7.0f} s CPU   {cpu_seconds / seconds / cores:.0%} of {cores} cores"
    )


def _title(tier: Tier) -> str:
    return f"\n{'#' * 40} {tier.name}\n"


def _print(*lines: str) -> None:
    sys.stdout.write("\n".join((*lines, "")))
    sys.stdout.flush()


def _in_ci() -> bool:
    return os.environ.get("CI") == "true"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
