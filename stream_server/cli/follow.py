"""The commands `stream-server tail` and `stream-server run`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.live import Live

from stream_server.auth.airflow_api import AirflowApi
from stream_server.cli.answer import Answer, has_terminal
from stream_server.cli.exit import ExitCode
from stream_server.cli.run_table import RunTable, describe_frame, describe_missing_outcome
from stream_server.cli.standard_streams import ErrorConsole, OutputConsole, write_output
from stream_server.cli.terminal_questions import TerminalQuestions
from stream_server.client import (
    ClientError,
    Message,
    Refused,
    RenewToken,
    TokenExpired,
    answer_input,
    follow,
)
from stream_server.domain.run_state import RunKey
from stream_server.errors import AirflowError, AirflowNotResponding, AirflowRefused
from stream_server.protocol.frames import End, Failure, Reset, Result
from stream_server.protocol.input_frames import Input

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells: 128 + SIGINT."""


class TriggerRequest(NamedTuple):
    dag_id: str
    run_id: str | None
    conf: dict[str, Any]
    airflow_url: str
    login: tuple[str, str] | None
    """Username and password, in place of a token."""


class Follower:
    """Shows a run in a terminal, or writes its frames as lines.

    Args:
        url: Address of stream_server.
        token: Bearer token.
        results: Tasks whose return values are the result.
        until: `result` or `run`.
        timeout: Seconds to wait; `None` for no limit.
        patience: Seconds to reconnect after the connection is lost.
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
        self._errors = ErrorConsole()
        self._renew_token: RenewToken | None = None
        self.result: Result | None = None

    def tail(self, key: RunKey, *, as_json: bool) -> int:
        """Show a run on standard output, as a live table or as NDJSON. Return the exit code."""
        console = OutputConsole()
        write_lines = as_json or not console.is_terminal
        return self._run_with_timeout(self._follow_run(key, None if write_lines else console, write_lines=write_lines))

    def trigger_and_follow(self, request: TriggerRequest) -> int:
        """Trigger a DAG and show its run on standard error. Set `result` and return the exit code."""

        async def work() -> int:
            key = await self._trigger(request)
            self._print_error(f"triggered {key.dag_id} / {key.run_id}")
            return await self._follow_run(key, self._errors, write_lines=False)

        return self._run_with_timeout(work())

    async def _trigger(self, request: TriggerRequest) -> RunKey:
        body: dict[str, Any] = {"conf": request.conf}
        if request.run_id:
            body["dag_run_id"] = request.run_id
        async with AirflowApi.open(request.airflow_url, self._token) as airflow:
            if request.login is not None:
                self._token = await airflow.login(*request.login)
                self._renew_token = partial(_log_in, request.airflow_url, request.login)
            return await airflow.trigger_run(request.dag_id, body)

    def _run_with_timeout(self, work: Coroutine[Any, Any, int]) -> int:
        try:
            return asyncio.run(asyncio.wait_for(work, self._timeout))
        except asyncio.TimeoutError:
            self._print_error(f"no outcome within {self._timeout:g} s; the run continues")
            return ExitCode.TIMEOUT
        except (ClientError, AirflowError) as error:
            expired = ". The run continues; follow it with a new token" if isinstance(error, TokenExpired) else ""
            self._print_error(f"{error}{expired}")
            return ExitCode.USAGE if isinstance(error, Refused | AirflowRefused) else ExitCode.CONNECTION_LOST
        except KeyboardInterrupt:
            return INTERRUPTED

    async def _follow_run(self, key: RunKey, console: Console | None, *, write_lines: bool) -> int:
        table = RunTable(*key)
        is_live = console is not None and console.is_terminal
        end: End | None = None
        live = Live(table, console=console, refresh_per_second=8) if is_live else None
        questions = self._start_questions(key, live)
        with live or nullcontext(), questions or nullcontext():
            async for message in follow(
                self._url,
                *key,
                results=self._results,
                until=self._until,
                token=self._token,
                renew_token=None if self._renew_token is None else self._renew,
                patience=self._patience,
            ):
                table.update(message.frame)
                if questions is not None:
                    questions.update(message.frame)
                self._print_frame(message, None if is_live else console, write_lines=write_lines)
                if isinstance(message.frame, Result):
                    self.result = message.frame
                elif isinstance(message.frame, Failure | Reset):
                    # A reset retracts the result. If it still holds, the server sends it again.
                    self.result = None
                elif isinstance(message.frame, End):
                    end = message.frame
        if end is not None and end.outcome == "none":
            self._print_error(describe_missing_outcome(end))
        return ExitCode.FAILURE if end is not None and end.outcome == "failure" else ExitCode.RESULT

    def _start_questions(self, key: RunKey, live: Live | None) -> TerminalQuestions | None:
        """Return what puts the questions of tasks to the user, if there is a terminal."""
        if live is None or not has_terminal():
            return None
        return TerminalQuestions(live, partial(self._send_answer, key))

    async def _send_answer(self, key: RunKey, request: Input, answer: Answer) -> None:
        await answer_input(
            self._url,
            *key,
            request.task_id,
            answer.chosen_options,
            map_index=request.map_index,
            iteration=request.iteration,
            params_input=answer.params_input,
            asked_at=request.asked_at.isoformat(),
            token=self._token,
        )

    async def _renew(self) -> str:
        """Return a new token, with which answers are sent, too."""
        assert self._renew_token is not None, "only a token with a login is renewed"
        self._token = await self._renew_token()
        return self._token

    def _print_frame(self, message: Message, console: Console | None, *, write_lines: bool) -> None:
        if write_lines:
            write_output(message.text)
        elif console is not None:
            console.print(describe_frame(message.frame), markup=False, highlight=False)

    def _print_error(self, text: str) -> None:
        self._errors.print(text, markup=False, highlight=False, soft_wrap=True)


async def _log_in(airflow_url: str, login: tuple[str, str]) -> str:
    """Return a new token.

    Raises:
        AirflowError: Airflow refuses the name and password.
        ConnectionError: Airflow does not answer at the moment.
    """
    try:
        async with AirflowApi.open(airflow_url, None) as airflow:
            return await airflow.login(*login)
    except AirflowNotResponding as error:
        raise ConnectionError(str(error)) from error


def encode_result_value(result: Result) -> bytes:
    """Return a result as JSON: the value of the only result task, or an object with the value of each."""
    values: dict[str, Any] = {**result.results, **result.references}
    return msgspec.json.encode(next(iter(values.values())) if len(values) == 1 else values)


def parse_conf(text: str) -> dict[str, Any]:
    """Return the configuration of a run.

    Raises:
        ValueError: The text is not a JSON object.
    """
    conf = json.loads(text)
    if not isinstance(conf, dict):
        raise ValueError(f"the configuration must be a JSON object, not {type(conf).__name__}")  # noqa: TRY004
    return conf
