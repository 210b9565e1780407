"""Copies of a running PostgreSQL: hot standbys that follow it, and independent backups."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from stream_server.cli.demo.errors import DemoError
from stream_server.cli.demo.postgres import SUPERUSER, EmbeddedPostgres
from support.postgres import FAST, make_run_directory
from support.waiting import eventually


@contextmanager
def base_backup(
    primary: EmbeddedPostgres, *, standby: bool, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedPostgres]:
    """Copy a running server; the copy has its own port, and is not started.

    Args:
        primary: The server to copy.
        standby: Whether the copy follows the primary.
        settings: Settings of the copy, in addition to those that make it fast.

    Raises:
        DemoError: pg_basebackup failed.
    """
    directory = make_run_directory()
    copy = EmbeddedPostgres(
        directory.postgres, settings={**FAST, **(settings or {})}, log=directory.logs / "postgresql.log"
    )
    try:
        # pg_basebackup runs as an account that can't create directories here, but can fill one that it owns.
        copy.data_dir.mkdir(mode=0o700)
        if copy.installation.account is not None:
            copy.installation.account.take_ownership_of(copy.data_dir)
        command = [
            *(copy.installation.program_path("pg_basebackup"), "--dbname", primary.url("postgres", SUPERUSER)),
            *("--pgdata", str(copy.data_dir), "--wal-method", "stream", "--checkpoint", "fast", "--no-sync"),
            *(["--write-recovery-conf"] if standby else []),
        ]
        done = subprocess.run(
            command, cwd="/", capture_output=True, text=True, check=False, **copy.installation.account_arguments()
        )
        if done.returncode != 0:
            raise DemoError(f"pg_basebackup failed: {done.stderr.strip()}")
        yield copy
    finally:
        copy.stop("immediate")
        directory.remove()


@contextmanager
def running_standby(primary: EmbeddedPostgres, settings: Mapping[str, str] | None = None) -> Iterator[EmbeddedPostgres]:
    """Run a hot standby of a server."""
    with base_backup(primary, standby=True, settings=settings) as standby:
        standby.start()
        yield standby


def catch_up(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """Wait until a standby has replayed all WAL of its primary."""
    written = primary.execute("SELECT pg_current_wal_flush_lsn()")
    eventually(
        lambda: standby.execute(f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == "t", what="the standby is level"
    )


def stop_following(standby: EmbeddedPostgres) -> None:
    """Disconnect a standby from its primary, as if the network failed."""
    standby.execute("ALTER SYSTEM SET primary_conninfo = ''")
    standby.execute("SELECT pg_reload_conf()")
    eventually(
        lambda: standby.execute("SELECT count(*) FROM pg_stat_wal_receiver") == "0", what="the standby is cut off"
    )


def promote(standby: EmbeddedPostgres) -> None:
    """Promote a standby to a primary."""
    assert standby.execute("SELECT pg_promote(wait => true)") == "t", "it was not promoted"
