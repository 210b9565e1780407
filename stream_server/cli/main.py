"""The command `stream-server`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from stream_server import __version__
from stream_server.cli.follow import ExitCode, Follower, encode_result_value, parse_conf
from stream_server.domain.run_state import RunKey
from stream_server.errors import StreamServerError
from stream_server.journal import installer as journal
from stream_server.settings import ENV_PREFIX, parse_duration
from stream_server.urls import are_valid_hosts, split_url

T = TypeVar("T")

# Bad usage exits as sysexits.h has it, since 2 says that the connection was lost. The class is click's, which some
# versions of typer bring along and others depend on.
typer.BadParameter.__mro__[1].exit_code = ExitCode.USAGE  # type: ignore[attr-defined]

app = typer.Typer(
    name="stream-server",
    help="Trigger an Airflow DAG and watch it answer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DatabaseUrlOption = Annotated[
    str,
    typer.Option(
        envvar=f"{ENV_PREFIX}DATABASE_URL",
        help="Airflow's metadata database. SQLAlchemy's forms, such as postgresql+psycopg2://, are accepted.",
        show_envvar=True,
    ),
]
Url = Annotated[str, typer.Option(envvar=f"{ENV_PREFIX}URL", help="Address of stream_server.")]
Token = Annotated[str | None, typer.Option(envvar=f"{ENV_PREFIX}TOKEN", help="Bearer token of Airflow's REST API.")]
ResultTask = Annotated[
    list[str] | None,
    typer.Option("--result", help="Task whose return value is the answer; repeatable. Default: what the author meant."),
]
Until = Annotated[str, typer.Option(help="'result': end with the outcome. 'run': go on to the end of the run.")]
Timeout = Annotated[str | None, typer.Option(help="Give up waiting after this time, e.g. 30s or 5m.")]
Patience = Annotated[str, typer.Option(help="How long to go on trying when the connection is lost.")]
LockTimeout = Annotated[str, typer.Option(help="How long one attempt may wait for a lock on Airflow's tables.")]
Attempts = Annotated[int, typer.Option(min=1, help="How often to try to get the locks.")]


@app.command()
def install(
    database_url: DatabaseUrlOption = "",
    *,
    airflow_schema: Annotated[str, typer.Option(help="Schema that holds Airflow's tables.")] = "public",
    lock_timeout: LockTimeout = "2s",
    attempts: Attempts = 10,
    reader: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Database role that is given what `serve` needs, and no more.")
    ] = None,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Print what would be run, and change nothing.")
    ] = False,
) -> None:
    """Make, or complete, the journal and its triggers in Airflow's database."""
    if print_sql:
        sys.stdout.write(f"BEGIN;\n{journal.build_install_sql(airflow_schema, reader)}COMMIT;\n")
        return
    timeout = _parse_duration_option(lock_timeout)
    _run_or_exit(
        journal.install_journal(
            _require_database_url(database_url), airflow_schema, lock_timeout=timeout, attempts=attempts, reader=reader
        )
    )
    _print_message("The journal is installed.")


@app.command()
def uninstall(
    database_url: DatabaseUrlOption = "",
    *,
    lock_timeout: LockTimeout = "2s",
    attempts: Attempts = 10,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Print what would be run, and change nothing.")
    ] = False,
) -> None:
    """Remove the triggers and the journal; nothing is left behind."""
    if print_sql:
        sys.stdout.write(f"BEGIN;\n{journal.build_uninstall_sql()}COMMIT;\n")
        return
    _run_or_exit(
        journal.uninstall_journal(
            _require_database_url(database_url), lock_timeout=_parse_duration_option(lock_timeout), attempts=attempts
        )
    )
    _print_message("The journal is removed.")


@app.command()
def status(
    database_url: DatabaseUrlOption = "",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Tell how the journal and its triggers stand; exit code 0 only if all is well."""
    found = _run_or_exit(journal.fetch_status(_require_database_url(database_url)))
    if as_json:
        sys.stdout.write(json.dumps(found.as_json(), indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _format_status(found)))
    raise typer.Exit(1 if found.problems else 0)


triggers = typer.Typer(help="Switch the triggers off and on again.", no_args_is_help=True)
app.add_typer(triggers, name="triggers")


@triggers.command("disable")
def triggers_disable(database_url: DatabaseUrlOption = "") -> None:
    """Let the triggers write nothing, from Airflow's next statement on. Streams stand still."""
    _run_or_exit(journal.disable_triggers(_require_database_url(database_url)))
    _print_message("The triggers are switched off.")


@triggers.command("enable")
def triggers_enable(database_url: DatabaseUrlOption = "") -> None:
    """Let the triggers write again. Streams begin anew."""
    _run_or_exit(journal.enable_triggers(_require_database_url(database_url)))
    _print_message("The triggers are switched on.")


@app.command()
def doctor(
    *,
    database_url: DatabaseUrlOption = "",
    airflow_url: Annotated[
        str, typer.Option(envvar=f"{ENV_PREFIX}AIRFLOW_URL", help="Address of Airflow's API server.")
    ] = "",
    url: Annotated[str, typer.Option(envvar=f"{ENV_PREFIX}URL", help="stream_server, as its clients reach it.")] = "",
    token: Token = None,
    max_connection_age: Annotated[str | None, typer.Option(help="Longest life of a connection; 0: no end.")] = None,
    retention: Annotated[
        str, typer.Option(envvar=f"{ENV_PREFIX}RETENTION", help="As of the server: age at which rows are deleted.")
    ] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Look for what is wrong, and say what to do about it. Nothing is changed.

    What is given is looked at: database, Airflow's API, stream_server and what is in front of it. Exit codes: 0 no
    problem, 1 problems, 64 usage.
    """
    from stream_server.cli.doctor.command import run_doctor  # noqa: PLC0415 # the clients need no server
    from stream_server.cli.doctor.runner import DoctorTargets  # noqa: PLC0415
    from stream_server.cli.doctor.thresholds import Thresholds  # noqa: PLC0415

    if not (database_url or airflow_url or url):
        _exit_with_error("Give --database-url, --airflow-url or --url", ExitCode.USAGE)
    limits = Thresholds(retention=_parse_duration_option(retention))
    subject = DoctorTargets(database_url or None, airflow_url or None, url or None, token, limits)
    raise typer.Exit(ExitCode.RESULT if run_doctor(subject, as_json=as_json) else ExitCode.FAILURE)


@app.command()
def serve(
    *,
    database_url: Annotated[
        str | None, typer.Option(envvar=f"{ENV_PREFIX}DATABASE_URL", help="Airflow's database.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.  [default: 8090]")] = None,
    admin_host: Annotated[
        str | None, typer.Option(help="Address of the port for operators.  [default: 127.0.0.1]")
    ] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of its own for metrics, health, descriptions.")] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="Proxy whose X-Forwarded-For is believed; repeatable.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve.  [default: 1]")] = None,
    auth: Annotated[
        str | None,
        typer.Option(
            help="'airflow': it decides who may read what; default with --airflow-url. 'none': everybody, on loopback."
        ),
    ] = None,
    i_know_that_everybody_can_read_everything: Annotated[
        bool | None,
        typer.Option("--i-know-that-everybody-can-read-everything", help="Allow 'none' where others can connect."),
    ] = None,
    auth_cache: Annotated[str | None, typer.Option(help="How long Airflow's answers are good.  [default: 30s]")] = None,
    auth_grace: Annotated[
        str | None, typer.Option(help="How long streams go on where Airflow can't be asked.  [default: 5m]")
    ] = None,
    airflow_url: Annotated[str | None, typer.Option(help="Address of Airflow's API server.")] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may read streams; repeatable.")
    ] = None,
    airflow_ui_url: Annotated[
        str | None, typer.Option(help="Address of Airflow's pages as browsers reach them, for links.")
    ] = None,
    web: Annotated[
        bool | None, typer.Option("--web/--no-web", help="Serve the run page and the chat page.  [default: web]")
    ] = None,
    poll_interval: Annotated[
        str | None, typer.Option(help="How often to look without a doorbell.  [default: 2s]")
    ] = None,
    ping_interval: Annotated[str | None, typer.Option(help="Longest silence of a stream.  [default: 15s]")] = None,
    max_connection_age: Annotated[str | None, typer.Option(help="Longest life of a connection; 0: no end.")] = None,
    retention: Annotated[
        str | None, typer.Option(help="Age at which rows of the journal are deleted; 0: never.  [default: 24h]")
    ] = None,
    retention_size: Annotated[
        str | None, typer.Option(help="Size beyond which the oldest rows are deleted: 1GiB; 0: none.  [default: 0]")
    ] = None,
    grace_period: Annotated[str | None, typer.Option(help="Longest shutdown.  [default: 10s]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.  [default: info]")] = None,
) -> None:
    """Serve streams until stopped. Every option can be set by STREAM_SERVER_… in the environment too."""
    # Options have the names of settings; the others are ignored.
    options = locals()
    from stream_server.server import main as server  # noqa: PLC0415 # the clients need no server
    from stream_server.server.workers.supervisor import run_supervisor  # noqa: PLC0415
    from stream_server.settings import Settings  # noqa: PLC0415

    try:
        settings = Settings.load(
            **{**options, "cors_origins": cors_origin or None, "trusted_proxies": trusted_proxy or None}
        )
        server.check_settings(settings)
        (server.run_server if settings.workers == 1 else run_supervisor)(settings)
    except StreamServerError as error:
        _exit_with_error(str(error), ExitCode.USAGE)


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
    as_json: Annotated[bool, typer.Option("--json", help="Write NDJSON, as is done anyway when piped.")] = False,
) -> None:
    """Watch a run: a live table on a terminal, NDJSON when piped.

    Exit codes: 0 result (or an end without one), 1 failure, 2 connection lost for good, 3 timeout, 64 usage.
    """
    follower = _make_follower(url=url, token=token, results=result, until=until, timeout=timeout, patience=patience)
    raise typer.Exit(follower.tail(RunKey(dag_id, run_id), as_json=as_json))


@app.command()
def run(
    dag_id: str,
    *,
    conf: Annotated[str, typer.Option(help="Configuration of the run, a JSON object.")] = "{}",
    run_id: Annotated[str | None, typer.Option(help="Name of the run. Default: Airflow's choice.")] = None,
    url: Url = "http://127.0.0.1:8090",
    airflow_url: Annotated[
        str, typer.Option(envvar=f"{ENV_PREFIX}AIRFLOW_URL", help="Address of Airflow's API server.")
    ] = "http://127.0.0.1:8080",
    result: ResultTask = None,
    until: Until = "result",
    token: Token = None,
    username: Annotated[
        str | None, typer.Option(envvar=f"{ENV_PREFIX}USERNAME", help="Airflow user, without a token.")
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(envvar=f"{ENV_PREFIX}PASSWORD", help="His password; better given by the environment."),
    ] = None,
    timeout: Timeout = None,
    patience: Patience = "60s",
    raw: Annotated[bool, typer.Option("--raw", help="Write a string without quotes.")] = False,
) -> None:
    """Trigger a DAG and watch it; the result alone is written to standard output, all else to standard error.

    Exit codes: 0 result (or an end without one), 1 failure, 2 connection lost for good, 3 timeout, 64 usage.
    """
    try:
        parsed = parse_conf(conf)
    except ValueError as error:
        _exit_with_error(f"--conf: {error}", ExitCode.USAGE)
    _require_address("--airflow-url", airflow_url)
    login = (username, password) if username is not None and password is not None else None
    follower = _make_follower(url=url, token=token, results=result, until=until, timeout=timeout, patience=patience)
    code = follower.trigger_and_follow(dag_id, parsed, run_id, airflow_url, login)
    if code == ExitCode.RESULT and follower.result is not None and follower.result.withheld:
        _exit_with_error(
            "there is a result, but this token may not read it: Airflow does not let it read XComs", ExitCode.USAGE
        )
    if code == ExitCode.RESULT and follower.result is not None:
        value = encode_result_value(follower.result).decode()
        sys.stdout.write((json.loads(value) if raw and value.startswith('"') else value) + "\n")
    raise typer.Exit(code)


@app.command()
def demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="Stop after the first run.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of stream_server. Default: a free one.")] = None,
    airflow_port: Annotated[int | None, typer.Option(help="Port of Airflow. Default: a free one.")] = None,
    postgres_port: Annotated[int | None, typer.Option(help="Port of PostgreSQL. Default: a free one.")] = None,
    data_dir: Annotated[Path, typer.Option(help="Where to keep data.")] = Path(".demo"),
    dags: Annotated[list[Path] | None, typer.Option(help="Folder of DAGs, beside the examples; repeatable.")] = None,
) -> None:
    """Start a real Airflow on an embedded PostgreSQL, trigger a DAG and stream it here. Needs the extra 'demo'."""
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
    """Write the version."""
    sys.stdout.write(f"{__version__}\n")


def main() -> None:
    """Run the command line."""
    app()


def _make_follower(
    *, url: str, token: str | None, results: list[str] | None, until: str, timeout: str | None, patience: str
) -> Follower:
    if until not in ("result", "run"):
        _exit_with_error("--until is 'result' or 'run'", ExitCode.USAGE)
    _require_address("--url", url)
    return Follower(
        url,
        token=token,
        results=results or (),
        until=until,
        timeout=None if timeout is None else _parse_duration_option(timeout),
        patience=_parse_duration_option(patience),
    )


def _require_address(option: str, url: str) -> None:
    """Refuse what has no host and port, without repeating it: it may hold a password."""
    if not are_valid_hosts(split_url(url if "://" in url else f"http://{url}")["hosts"]):
        _exit_with_error(f"{option} is no address; write http://host:port", ExitCode.USAGE)


def _require_database_url(database_url: str) -> str:
    if not database_url:
        _exit_with_error(f"Give --database-url or {ENV_PREFIX}DATABASE_URL", ExitCode.USAGE)
    return database_url


def _parse_duration_option(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        _exit_with_error(str(error), ExitCode.USAGE)


def _run_or_exit(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except StreamServerError as error:
        _exit_with_error(str(error), ExitCode.FAILURE)


def _format_status(found: journal.JournalStatus) -> list[str]:
    if not found.installed:
        return found.problems
    lines = [
        f"journal: version {found.version}, epoch {found.epoch}, Airflow's tables in schema {found.airflow_schema}"
    ]
    if found.losses:
        lines.append(f"losses: {found.losses}; PostgreSQL's log says why")
    for trigger in found.triggers:
        state = "well" if trigger.is_working else "not well"
        lines.append(f"trigger {trigger.trigger} on {trigger.table}: {state}")
    return lines + [f"problem: {problem}" for problem in found.problems]


def _print_message(text: str) -> None:
    sys.stderr.write(text + "\n")


def _exit_with_error(text: str, code: int) -> NoReturn:
    _print_message(f"stream-server: {text}")
    raise typer.Exit(code)
