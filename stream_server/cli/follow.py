"""The commands `stream-server tail` and `stream-server run`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from enum import IntEnum
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live

from stream_server.auth.airflow_api import AirflowApi
from stream_server.cli.run_table import RunTable, describe_frame
from stream_server.client import ConnectionLost, Message, Refused, StreamClosed, follow
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowError, AirflowRefused
from stream_server.protocol.frames import End, Failure, Result


class ExitCode(IntEnum):
    """Exit codes of the commands."""

    RESULT = 0
    FAILURE = 1
    CONNECTION_LOST = 2
    TIMEOUT = 3
    USAGE = 64
    """As `EX_USAGE` in sysexits.h; also for what the server or Airflow refuses."""


class Follower:
    """Follows a run in a terminal, or writes its frames as lines.

    Args:
        url: Address of the server.
        token: Bearer token.
        results: Tasks whose return values are the answer.
        until: `result` or `run`.
        timeout: Seconds after which to give up waiting; `None` to wait for as long as it takes.
        patience: Seconds to go on trying when the connection is lost.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        results: Sequence[str],
        until: str,
        timeout: float | None,
        patience: float,
    ) -> None:
        self._url = url
        self._token = token
        self._results = results
        self._until = until
        self._timeout = timeout
        self._patience = patience
        self._errors = Console(stderr=True)
        self.result: Result | None = None

    def tail(self, key: RunKey, *, as_json: bool) -> int:
        """Show a run: as a live table on standard output, or as NDJSON. Return the exit code."""
        console = Console()
        lines = as_json or not console.is_terminal
        return self._run_with_timeout(self._follow_run(key, None if lines else console, write_lines=lines))

    def trigger_and_follow(
        self,
        dag_id: str,
        conf: dict[str, Any],
        run_id: str | None,
        airflow_url: str,
        login: tuple[str, str] | None,
    ) -> int:
        """Trigger a DAG and show its run on standard error. Return the exit code; the result is in `result`."""
        return self._run_with_timeout(self._trigger(dag_id, conf, run_id, airflow_url, login))

    async def _trigger(
        self,
        dag_id: str,
        conf: dict[str, Any],
        run_id: str | None,
        airflow_url: str,
        login: tuple[str, str] | None,
    ) -> int:
        async with AirflowApi.open(airflow_url, self._token) as airflow:
            if login is not None:
                self._token = await airflow.login(*login)
            key = await airflow.trigger_run(dag_id, {"conf": conf, **({"dag_run_id": run_id} if run_id else {})})
        self._print_error(f"triggered {key.dag_id} / {key.run_id}")
        return await self._follow_run(key, self._errors, write_lines=False)

    def _run_with_timeout(self, work: Coroutine[Any, Any, int]) -> int:
        try:
            return asyncio.run(asyncio.wait_for(work, self._timeout))
        except asyncio.TimeoutError:
            self._print_error(f"no outcome within {self._timeout:g} s; the run goes on")
            return ExitCode.TIMEOUT
        except (ConnectionLost, StreamClosed) as error:
            self._print_error(str(error))
            return ExitCode.CONNECTION_LOST
        except Refused as error:
            self._print_error(str(error))
            return ExitCode.USAGE
        except AirflowError as error:
            self._print_error(str(error))
            return ExitCode.USAGE if isinstance(error, AirflowRefused) else ExitCode.CONNECTION_LOST
        except KeyboardInterrupt:
            return 130

    async def _follow_run(self, key: RunKey, console: Console | None, *, write_lines: bool) -> int:
        view = RunTable(*key)
        live = console is not None and console.is_terminal
        outcome = "none"
        with Live(view, console=console, refresh_per_second=8) if live else nullcontext():
            async for message in follow(
                self._url,
                *key,
                results=self._results,
                until=self._until,
                token=self._token,
                patience=self._patience,
            ):
                view.update(message.frame)
                self._print_frame(message, console if not live else None, write_lines=write_lines)
                if isinstance(message.frame, Result):
                    self.result = message.frame
                elif isinstance(message.frame, Failure):
                    self.result = None
                elif isinstance(message.frame, End):
                    outcome = message.frame.outcome
        return ExitCode.FAILURE if outcome == "failure" else ExitCode.RESULT

    def _print_frame(self, message: Message, console: Console | None, *, write_lines: bool) -> None:
        if write_lines:
            sys.stdout.write(message.text + "\n")
            sys.stdout.flush()
        elif console is not None:
            console.print(describe_frame(message.frame), markup=False, highlight=False)

    def _print_error(self, text: str) -> None:
        self._errors.print(text, markup=False, highlight=False, soft_wrap=True)


def encode_result_value(result: Result) -> bytes:
    """Return what a result says as JSON: the value of its only task, or else an object by task."""
    parts: dict[str, Any] = {**result.results, **result.references}
    only = next(iter(parts.values())) if len(parts) == 1 else parts
    return msgspec.json.encode(only)


def parse_conf(text: str) -> dict[str, Any]:
    """Read the configuration of a run.

    Raises:
        ValueError: The text is no JSON object.
    """
    conf = json.loads(text)
    if not isinstance(conf, dict):
        raise ValueError(f"the configuration must be a JSON object, not {type(conf).__name__}")  # noqa: TRY004
    return conf
