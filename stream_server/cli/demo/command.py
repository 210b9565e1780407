"""``stream-server demo``: a real Airflow, a stream server, and one run shown live."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.processes import module_command, run_in_foreground
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.server import server_environment
from stream_server.cli.demo.stack import DemoStack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from stream_server.cli.demo.progress import ProgressReporter

DAG_ID = "chat_answer"
RUN_ID = "first"
CONF = {"question": "Why is the sky blue?", "teardown_seconds": 10}
RUN_PAGE = f"/runs/{DAG_ID}/{RUN_ID}"
CHECK_SECONDS = 0.5

DONE = 0
RUN_FAILED = 1
NOT_STARTED = 2
INTERRUPTED = 130

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(
    *,
    once: bool,
    port: int | None,
    airflow_port: int | None,
    postgres_port: int | None,
    data_dir: Path,
    dags: Sequence[Path] = (),
    progress: ProgressReporter | None = None,
) -> int:
    """Start a stack, show one run of the chat example, and stay until Ctrl-C.

    Standard output belongs to the run; all else is told on standard error.

    Args:
        once: Stop after the run instead of staying.
        port: The stream server's port; None for a free one, as with the others.
        airflow_port: Airflow's port.
        postgres_port: PostgreSQL's port.
        data_dir: Where the template cluster and the run directory go.
        dags: Folders with DAG files, besides the examples.
        progress: Where to report; standard error by default.

    Returns:
        The exit code: 0; 1 if the run failed with ``once``; 2 if the stack did not start or broke down; 130 if
        it was interrupted before it was ready.
    """
    progress = progress or ConsoleReporter()
    with _interrupt_on_signals():
        try:
            stack = DemoStack(
                data_dir,
                dags=dags,
                port=port,
                airflow_port=airflow_port,
                postgres_port=postgres_port,
                progress=progress,
            )
        except (DemoError, OSError) as error:
            progress.print_line(f"The demo cannot start: {error}")
            return NOT_STARTED
        except KeyboardInterrupt:
            return INTERRUPTED
        return _DemoRun(stack, progress).run(once=once)


class _DemoRun:
    """One demo from its start to its end."""

    def __init__(self, stack: DemoStack, progress: ProgressReporter) -> None:
        self._stack = stack
        self._reporter = progress
        self._ready = False

    def run(self, *, once: bool) -> int:
        keep_logs = True
        try:
            code = self._run_example(once=once)
            keep_logs = code != DONE
        except (DemoError, OSError, httpx.HTTPError) as error:
            self._reporter.print_line(f"The demo has broken down: {error}")
            code = NOT_STARTED
        except KeyboardInterrupt:
            code = DONE if self._ready and not once else INTERRUPTED
            keep_logs = False
        finally:
            _ignore_signals()
            self._reporter.print_line("Stopping everything ...")
            self._stack.stop(keep_logs=keep_logs)
            if keep_logs:
                self._reporter.print_line(f"The logs are in {self._stack.logs}")
        return code

    def _run_example(self, *, once: bool) -> int:
        stack = self._stack
        stack.start()
        with stack.rest_client() as rest:
            token = rest.token
        self._ready = True
        self._reporter.print_line(_format_addresses(stack))
        code = run_in_foreground(
            module_command(
                "stream_server",
                *("run", DAG_ID, "--run-id", RUN_ID, "--conf", json.dumps(CONF)),
                *("--url", stack.server_url, "--airflow-url", stack.airflow_url),
            ),
            {**server_environment(), "STREAM_SERVER_TOKEN": token},
        )
        if once:
            return DONE if code == 0 else RUN_FAILED
        self._reporter.print_line(_format_instructions(stack))
        while True:
            stack.raise_if_ended()
            time.sleep(CHECK_SECONDS)


def _format_addresses(stack: DemoStack) -> str:
    user = stack.credentials
    return "\n".join(
        (
            "",
            f"Pages          {stack.server_url}  (user {user.username}, password {user.password}, as in Airflow)",
            f"This run       {stack.server_url}{RUN_PAGE}",
            f"Airflow        {stack.airflow_url}  (user {user.username}, password {user.password})",
            f"PostgreSQL     {stack.database_url}",
            f"Logs           {stack.logs}",
            "",
        )
    )


def _format_instructions(stack: DemoStack) -> str:
    user = stack.credentials
    return "\n".join(
        (
            "",
            f"In a browser, all runs are at {stack.server_url}, and the chat at {stack.server_url}/chat.",
            "In another terminal, trigger another run:",
            "",
            f'  {_program_path()} run {DAG_ID} --conf \'{{"question": "Why is the grass green?"}}\' \\',
            f"    --url {stack.server_url} --airflow-url {stack.airflow_url} \\",
            f"    --username {user.username} --password {user.password}",
            "",
            "or trigger one in Airflow and watch it, as this one can be watched, with a token of Airflow's:",
            "",
            f"  TOKEN=$(curl -s {stack.airflow_url}/auth/token/cli -H 'Content-Type: application/json' \\",
            f'    -d \'{{"username": "{user.username}", "password": "{user.password}"}}\' | cut -d \'"\' -f 4)',
            f"  curl -N {stack.server_url}/api/v2/dags/{DAG_ID}/dagRuns/{RUN_ID}/stream \\",
            '    -H "Authorization: Bearer $TOKEN"',
            "",
            "Ctrl-C stops everything.",
        )
    )


def _program_path() -> str:
    """Return the path of our own command, as it can be typed here."""
    path = Path(sys.executable).with_name("stream-server")
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def _interrupt_on_signals() -> Iterator[None]:
    """Let each of the ending signals raise KeyboardInterrupt, until they are ignored for the cleaning up."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number, handler in before.items():
        # Under nohup a closed terminal is no reason to end.
        if number != signal.SIGHUP or handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: it was not set from Python


def _ignore_signals() -> None:
    """Ignore what would interrupt the cleaning up, which takes some seconds and no more."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
