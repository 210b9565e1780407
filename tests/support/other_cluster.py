"""Clusters with transaction ids of their own, and moves of a database from one to another."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stream_server.cli.demo import template_cluster
from stream_server.cli.demo.postgres import SUPERUSER, EmbeddedPostgres
from support.postgres import FAST, make_run_directory


@contextmanager
def new_cluster(settings: Mapping[str, str] | None = None) -> Iterator[EmbeddedPostgres]:
    """Run an empty cluster with Airflow's role. Unlike copies of the template, it has an identifier of its own."""
    directory = make_run_directory()
    server = EmbeddedPostgres(
        directory.postgres, settings={**FAST, **(settings or {})}, log=directory.logs / "postgresql.log"
    )
    try:
        server.create_cluster()
        server.start()
        server.execute(f"CREATE ROLE {template_cluster.ROLE} LOGIN")
        yield server
    finally:
        server.stop("immediate")
        directory.remove()


def dump_and_restore(source: EmbeddedPostgres, database: str, target: EmbeddedPostgres) -> None:
    """Copy a database to another cluster, under its name."""
    target.execute(f"CREATE DATABASE {database} OWNER {template_cluster.ROLE}")
    target.execute(dump(source, database), database)


def dump(source: EmbeddedPostgres, database: str, *options: str) -> str:
    """Return a database as SQL."""
    command = [source.installation.program_path("pg_dump"), *options, source.url(database, SUPERUSER)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def use_up_transaction_ids(postgres: EmbeddedPostgres, count: int) -> None:
    postgres.execute(
        f"DO $$ BEGIN FOR i IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$", "template1"
    )


def pg_upgrade(old: EmbeddedPostgres, new: EmbeddedPostgres) -> None:
    """Upgrade a cluster into a new one. Both are stopped; the new one is started at the end."""
    new.execute(f"DROP ROLE {template_cluster.ROLE}")
    for server in (old, new):
        server.stop()
    installation = new.installation
    programs = Path(installation.program_path("pg_upgrade")).parent
    with tempfile.TemporaryDirectory() as scratch:
        if installation.account is not None:
            installation.account.take_ownership_of(Path(scratch))
        command = [
            *(installation.program_path("pg_upgrade"), "--username", SUPERUSER, "--no-sync", "--socketdir", scratch),
            *("--old-bindir", str(programs), "--new-bindir", str(programs)),
            *("--old-datadir", str(old.data_dir), "--new-datadir", str(new.data_dir)),
        ]
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, check=False, **installation.account_arguments()
        )
        assert done.returncode == 0, f"pg_upgrade failed: {done.stdout}{done.stderr}"
    new.start()
