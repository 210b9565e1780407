"""The commands `install`, `uninstall`, `status`, `triggers disable` and `triggers enable`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from stream_server.cli.exit import print_message, run_or_exit
from stream_server.cli.options import AsJson, DatabaseUrlOption, parse_duration_option, require_database_url
from stream_server.cli.standard_streams import write_output
from stream_server.journal import installer
from stream_server.journal.status import JournalStatus

LockTimeout = Annotated[str, typer.Option(help="How long one attempt waits for locks on Airflow's tables.")]
Attempts = Annotated[int, typer.Option(min=1, help="Number of attempts to get the locks.")]
PrintSql = Annotated[bool, typer.Option("--print-sql", help="Print the SQL statements without running them.")]

triggers = typer.Typer(help="Disable and enable the triggers.", no_args_is_help=True)


def install(
    database_url: DatabaseUrlOption = "",
    *,
    airflow_schema: Annotated[str, typer.Option(help="Schema of Airflow's tables.")] = "public",
    lock_timeout: LockTimeout = "2s",
    attempts: Attempts = 10,
    reader: Annotated[
        str | None, typer.Option(metavar="ROLE", help="Database role that is granted what `serve` needs, and no more.")
    ] = None,
    print_sql: PrintSql = False,
) -> None:
    """Install or upgrade the journal and its triggers in Airflow's database."""
    if print_sql:
        write_output(f"BEGIN;\n{installer.build_install_sql(airflow_schema, reader)}COMMIT;")
        return
    timeout = parse_duration_option(lock_timeout)
    url = require_database_url(database_url)
    run_or_exit(installer.install_journal(url, airflow_schema, lock_timeout=timeout, attempts=attempts, reader=reader))
    print_message("The journal is installed.")


def uninstall(
    database_url: DatabaseUrlOption = "",
    *,
    lock_timeout: LockTimeout = "2s",
    attempts: Attempts = 10,
    print_sql: PrintSql = False,
) -> None:
    """Remove the triggers and the journal completely."""
    if print_sql:
        write_output(f"BEGIN;\n{installer.build_uninstall_sql()}COMMIT;")
        return
    timeout = parse_duration_option(lock_timeout)
    run_or_exit(
        installer.uninstall_journal(require_database_url(database_url), lock_timeout=timeout, attempts=attempts)
    )
    print_message("The journal is removed.")


def status(database_url: DatabaseUrlOption = "", *, as_json: AsJson = False) -> None:
    """Show the status of the journal and its triggers. Exit codes: 0 no problem, 1 problems."""
    found = run_or_exit(installer.fetch_status(require_database_url(database_url)))
    if as_json:
        write_output(json.dumps(found.as_json(), indent=2))
    else:
        write_output("\n".join(_format_status(found)))
    raise typer.Exit(1 if found.problems else 0)


@triggers.command("disable")
def triggers_disable(database_url: DatabaseUrlOption = "") -> None:
    """Disable the triggers from Airflow's next statement on. Streams receive no frames."""
    run_or_exit(installer.disable_triggers(require_database_url(database_url)))
    print_message("The triggers are disabled.")


@triggers.command("enable")
def triggers_enable(database_url: DatabaseUrlOption = "") -> None:
    """Enable the triggers. Streams start again with a snapshot."""
    run_or_exit(installer.enable_triggers(require_database_url(database_url)))
    print_message("The triggers are enabled.")


def _format_status(found: JournalStatus) -> list[str]:
    if not found.installed:
        return found.problems
    lines = [
        f"journal: version {found.version}, epoch {found.epoch}, Airflow's tables in schema {found.airflow_schema}"
    ]
    if found.losses:
        lines.append(f"losses: {found.losses}; see PostgreSQL's log for the reason")
    for trigger in found.triggers:
        state = "ok" if trigger.is_working else "not ok"
        lines.append(f"trigger {trigger.trigger} on {trigger.table}: {state}")
    lines += [f"problem: {problem}" for problem in found.problems]
    return lines + [f"warning: {warning}" for warning in found.warnings]
