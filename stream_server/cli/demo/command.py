"""`stream-server demo`: a real Airflow, stream_server, and one run in the terminal."""

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
_PROGRAM = Path(sys.executable).with_name("stream-server")
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
    """Start a stack, show one run of the chat example, and keep running until Ctrl-C.

    Standard output is for the result of the run; all other output goes to standard error.

    Args:
        once: Whether to stop after the run.
        port: Port of stream_server; None for a free one, as for the other ports.
        airflow_port: Port of Airflow.
        postgres_port: Port of PostgreSQL.
        data_dir: Directory for template clusters and run directories.
        dags: Folders with DAG files, in addition to the examples.
        progress: Receives the steps; by default, they go to standard error.

    Returns:
        The exit code: 0; 1 if the run failed with `once`; 2 if a process did not start or ended unexpectedly; 130 if
        the demo was interrupted before it was ready.
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
            self._reporter.print_line(f"The demo has failed: {error}")
            code = NOT_STARTED
        except KeyboardInterrupt:
            code = DONE if self._ready and not once else INTERRUPTED
            keep_logs = False
        finally:
            _ignore_signals()
            self._reporter.print_line("Stopping all processes ...")
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
                "run",
                DAG_ID,
                f"--run-id={RUN_ID}",
                f"--conf={json.dumps(CONF)}",
                f"--url={stack.server_url}",
                f"--airflow-url={stack.airflow_url}",
            ),
            {**server_environment(), "STREAM_SERVER_TOKEN": token},
        )
        # A file that Airflow reads after the examples.
        stack.airflow.report_import_errors(self._reporter)
        if once:
            return DONE if code == 0 else RUN_FAILED
        self._reporter.print_line(_format_instructions(stack, token))
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


def _format_instructions(stack: DemoStack, token: str) -> str:
    user = stack.credentials
    return "\n".join(
        (
            "",
            f"Open {stack.server_url} in a browser for all runs, and {stack.server_url}/chat for the chat.",
            "Trigger another run from another terminal:",
            "",
            f'  {_program_path()} run {DAG_ID} --conf \'{{"question": "Why is the grass green?"}}\' \\',
            f"    --url {stack.server_url} --airflow-url {stack.airflow_url} \\",
            f"    --username {user.username} --password {user.password}",
            "",
            "Or trigger one in Airflow, and stream it with a token of Airflow, as in this example for the first run:",
            "",
            f"  TOKEN=$(curl -s {stack.airflow_url}/auth/token/cli -H 'Content-Type: application/json' \\",
            f'    -d \'{{"username": "{user.username}", "password": "{user.password}"}}\' | cut -d \'"\' -f 4)',
            f"  curl -N {stack.server_url}/api/v2/dags/{DAG_ID}/dagRuns/{RUN_ID}/stream \\",
            '    -H "Authorization: Bearer $TOKEN"',
            "",
            "Or ask from a chat UI or an SDK of OpenAI (docs/openai.md), from the AI SDK (docs/ai-sdk.md), or from",
            "CopilotKit (docs/agui.md):",
            "",
            f"  base URL       {stack.server_url}/v1  (model chat_stream)",
            f"  for useChat    {stack.server_url}/api/v2/dags/chat_stream/chat",
            f"  for AG-UI      {stack.server_url}/api/v2/dags/chat_stream/ag-ui",
            f"  key            {token}  (valid for a day)",
            "",
            "Or let an agent call DAGs as tools (docs/mcp.md): chat_answer, mapped_squares. Claude Code:",
            "",
            f"  claude mcp add --transport http airflow {stack.server_url}/mcp \\",
            f"    --header 'Authorization: Bearer {token}'",
            "",
            "Claude Desktop and all other agents that have an `mcp.json` or a similar file:",
            "",
            f"  {format_mcp_configuration(stack.server_url, token)}",
            "",
            "Press Ctrl-C to stop.",
        )
    )


def format_mcp_configuration(url: str, token: str) -> str:
    """Return the configuration of an agent that starts `stream-server mcp`, as JSON."""
    server = {"command": str(_PROGRAM), "args": ["mcp", "--url", url], "env": {"STREAM_SERVER_TOKEN": token}}
    return json.dumps({"mcpServers": {"airflow": server}})


def _program_path() -> str:
    """Return the path of the command `stream-server`, relative to the current directory if possible."""
    return os.path.relpath(_PROGRAM) if _PROGRAM.is_relative_to(Path.cwd()) else str(_PROGRAM)


@contextmanager
def _interrupt_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on each of ENDING_SIGNALS; restore the handlers at the end."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    for number, handler in previous.items():
        # `nohup` ignores SIGHUP; keep that.
        if number != signal.SIGHUP or handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python


def _ignore_signals() -> None:
    """Ignore ENDING_SIGNALS, so that they do not interrupt the cleanup, which takes only seconds."""
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
