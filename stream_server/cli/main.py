"""The command `stream-server`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from stream_server import __version__
from stream_server.cli import journal_commands
from stream_server.cli.answer import parse_params
from stream_server.cli.exit import ExitCode, exit_with_error, print_message
from stream_server.cli.follow import Follower, TriggerRequest, encode_result_value, parse_conf
from stream_server.cli.options import (
    AirflowUrl,
    AsJson,
    DatabaseUrlOption,
    Token,
    Url,
    parse_duration_option,
    require_database_url,
    require_host_and_port,
)
from stream_server.cli.questions import list_questions
from stream_server.cli.serve import serve
from stream_server.cli.standard_streams import OutputError, configure_encodings, discard_output, write_output
from stream_server.client import ConnectionLost, Refused, answer_input
from stream_server.domain.run_state import RunKey
from stream_server.settings import ENV_PREFIX

UsageError = cast("type[Any]", typer.BadParameter.__base__)
"""click's `UsageError`. Typer does not export it, and imports it from click or from its own copy, depending on its
version."""

ResultTask = Annotated[
    list[str] | None,
    typer.Option("--result", help="Task whose return value is the result; repeatable. Default: as marked in the DAG."),
]
Until = Annotated[str, typer.Option(help="'result': end with the outcome. 'run': continue until the end of the run.")]
Timeout = Annotated[str | None, typer.Option(help="Stop waiting after this time, such as 30s or 5m.")]
Patience = Annotated[str, typer.Option(help="How long to reconnect after the connection is lost.")]

app = typer.Typer(
    name="stream-server",
    help="Trigger an Airflow DAG and stream its run and result live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(journal_commands.install)
app.command()(journal_commands.uninstall)
app.command()(journal_commands.status)
app.add_typer(journal_commands.triggers, name="triggers")


def main() -> None:
    """Run the command and exit with its code."""
    configure_encodings()
    try:
        code = app(standalone_mode=False)
    except UsageError as error:
        error.show()
        code = ExitCode.USAGE
    except OutputError as error:
        discard_output()
        if error.exit_code != ExitCode.CLOSED_PIPE:
            print_message(f"stream-server: {error}")
        code = error.exit_code
    sys.exit(code)


@app.command()
def doctor(
    *,
    database_url: DatabaseUrlOption = "",
    airflow_url: AirflowUrl = "",
    url: Url = "",
    token: Token = None,
    retention: Annotated[
        str, typer.Option(envvar=f"{ENV_PREFIX}RETENTION", help="Age at which the server deletes rows of the journal.")
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Find problems of an installation, with a remedy for each. Changes nothing.

    Checks what it is given: the database, Airflow's API, stream_server and the proxies in front of it. Exit codes: 0 no
    problem, 1 problems, 64 usage.
    """
    from stream_server.cli.doctor.command import run_doctor  # noqa: PLC0415 # slow to import
    from stream_server.cli.doctor.runner import DoctorTargets  # noqa: PLC0415
    from stream_server.cli.doctor.thresholds import Thresholds  # noqa: PLC0415

    if not (database_url or airflow_url or url):
        exit_with_error("set --database-url, --airflow-url or --url", ExitCode.USAGE)
    thresholds = Thresholds(retention=parse_duration_option(retention))
    database_url = require_database_url(database_url) if database_url else ""
    targets = DoctorTargets(database_url or None, airflow_url or None, url or None, token, thresholds)
    raise typer.Exit(ExitCode.RESULT if run_doctor(targets, as_json=as_json) else ExitCode.FAILURE)


app.command()(serve)


@app.command()
def tail(
    dag_id: str,
    run_id: str,
    *,
    url: Url = "http://127.0.0.1:8090",
    result: ResultTask = None,
    until: Until = "run",
    token: Token = None,
    timeout: Timeout = None,
    patience: Patience = "60s",
    as_json: Annotated[
        bool, typer.Option("--json", help="Write NDJSON on a terminal, too. A pipe always receives NDJSON.")
    ] = False,
) -> None:
    """Watch a run: as a live table on a terminal, as NDJSON in a pipe.

    Exit codes: 0 result, or end of the run without a result, 1 failure, 2 connection lost, 3 timeout, 64 usage,
    74 output impossible, 141 closed pipe.
    """
    follower = _make_follower(url=url, token=token, results=result, until=until, timeout=timeout, patience=patience)
    raise typer.Exit(follower.tail(RunKey(dag_id, run_id), as_json=as_json))


@app.command()
def run(
    dag_id: str,
    *,
    conf: Annotated[str, typer.Option(help="Configuration of the run, a JSON object.")] = "{}",
    run_id: Annotated[str | None, typer.Option(help="ID of the run. Default: generated by Airflow.")] = None,
    url: Url = "http://127.0.0.1:8090",
    airflow_url: AirflowUrl = "http://127.0.0.1:8080",
    result: ResultTask = None,
    until: Until = "result",
    token: Token = None,
    username: Annotated[
        str | None, typer.Option(envvar=f"{ENV_PREFIX}USERNAME", help="Airflow user, in place of a token.")
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(envvar=f"{ENV_PREFIX}PASSWORD", help="Password of the user. Prefer the environment variable."),
    ] = None,
    timeout: Timeout = None,
    patience: Patience = "60s",
    raw: Annotated[bool, typer.Option("--raw", help="Write a string without quotes.")] = False,
) -> None:
    """Trigger a DAG and watch its run. Only the result goes to standard output, all else to standard error.

    Exit codes: 0 result, or end of the run without a result, 1 failure, 2 connection lost, 3 timeout, 64 usage,
    74 output impossible, 141 closed pipe.
    """
    try:
        parsed_conf = parse_conf(conf)
    except ValueError as error:
        exit_with_error(f"--conf: {error}", ExitCode.USAGE)
    require_host_and_port("--airflow-url", airflow_url)
    login = (username, password) if username is not None and password is not None else None
    follower = _make_follower(url=url, token=token, results=result, until=until, timeout=timeout, patience=patience)
    code = follower.trigger_and_follow(TriggerRequest(dag_id, run_id, parsed_conf, airflow_url, login))
    if code == ExitCode.RESULT and follower.result is not None:
        if follower.result.withheld:
            exit_with_error(
                "the run has a result, but this token may not read it: its user may not read XComs", ExitCode.USAGE
            )
        value = encode_result_value(follower.result).decode()
        write_output(json.loads(value) if raw and value.startswith('"') else value)
    raise typer.Exit(code)


@app.command()
def answer(
    dag_id: str,
    run_id: str,
    task_id: str,
    *,
    option: Annotated[list[str], typer.Option("--option", help="Option to choose; repeatable.")],
    param: Annotated[
        list[str] | None, typer.Option("--param", help="Field of the form, as name=value; JSON or text; repeatable.")
    ] = None,
    map_index: Annotated[int, typer.Option(help="Index of an instance of a mapped task.")] = -1,
    iteration: Annotated[int | None, typer.Option(help="Iteration of the task loop around the task.")] = None,
    url: Url = "http://127.0.0.1:8090",
    token: Token = None,
) -> None:
    """Answer a question that a task of a run asks.

    Exit codes: 0 answered, 2 connection lost, 64 usage, also if the question is not open any more.
    """
    try:
        params = parse_params(param or ())
    except ValueError as error:
        exit_with_error(f"--param: {error}", ExitCode.USAGE)
    require_host_and_port("--url", url)
    request = answer_input(
        url,
        dag_id,
        run_id,
        task_id,
        option,
        map_index=map_index,
        iteration=iteration,
        params_input=params,
        token=token,
    )
    try:
        written = asyncio.run(request)
    except Refused as error:
        exit_with_error(str(error), ExitCode.USAGE)
    except ConnectionLost as error:
        exit_with_error(str(error), ExitCode.CONNECTION_LOST)
    write_output(json.dumps(written, ensure_ascii=False))


@app.command()
def questions(
    dag_id: str,
    run_id: str,
    *,
    url: Url = "http://127.0.0.1:8090",
    token: Token = None,
    patience: Patience = "0s",
    as_json: Annotated[
        bool, typer.Option("--json", help="Write NDJSON on a terminal, too. A pipe always receives NDJSON.")
    ] = False,
) -> None:
    """List the questions that tasks of a run ask at the moment. `answer` answers one.

    Exit codes: 0 also if there is none, 2 connection lost, 64 usage.
    """
    require_host_and_port("--url", url)
    key = RunKey(dag_id, run_id)
    list_questions(url, key, token=token, patience=parse_duration_option(patience), as_json=as_json)


@app.command()
def mcp(*, url: Url = "http://127.0.0.1:8090", token: Token = None) -> None:
    """Offer DAGs as tools over standard input and output (Model Context Protocol), for agents that start a program."""
    from stream_server.cli.mcp_bridge import run_bridge  # noqa: PLC0415 # only this command needs it

    require_host_and_port("--url", url)
    asyncio.run(run_bridge(url, token))


@app.command()
def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Stop after the first run.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of stream_server. Default: a free one.")] = None,
    airflow_port: Annotated[int | None, typer.Option(help="Port of Airflow. Default: a free one.")] = None,
    postgres_port: Annotated[int | None, typer.Option(help="Port of PostgreSQL. Default: a free one.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Directory for the demo's data.")] = Path(".demo"),
    dags: Annotated[
        list[Path] | None, typer.Option(help="Folder with DAG files, in addition to the examples; repeatable.")
    ] = None,
) -> None:
    """Start Airflow on an embedded PostgreSQL, trigger a DAG and stream its run here. Requires the extra 'demo'."""
    from stream_server.cli.demo.command import run_demo  # noqa: PLC0415 # most installations have no demo

    raise typer.Exit(
        run_demo(
            once=once,
            port=port,
            airflow_port=airflow_port,
            postgres_port=postgres_port,
            data_dir=data_dir,
            dags=dags or (),
        )
    )


@app.command()
def version() -> None:
    """Print the version."""
    write_output(__version__)


def _make_follower(
    *, url: str, token: str | None, results: list[str] | None, until: str, timeout: str | None, patience: str
) -> Follower:
    if until not in ("result", "run"):
        exit_with_error(f"--until must be 'result' or 'run', not {until!r}", ExitCode.USAGE)
    require_host_and_port("--url", url)
    return Follower(
        url,
        token=token,
        results=results or (),
        until=until,
        timeout=None if timeout is None else parse_duration_option(timeout),
        patience=parse_duration_option(patience),
    )
