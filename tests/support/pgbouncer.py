"""PgBouncer in front of PostgreSQL. Without it, tests are skipped, or fail where CI=true."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from stream_server.cli.demo.ports import LOOPBACK, find_free_port
from stream_server.cli.demo.postgres import SUPERUSER, EmbeddedPostgres
from stream_server.cli.demo.processes import ChildProcess, wait_until
from stream_server.cli.demo.progress import SilentReporter
from support import system_programs

PoolMode = Literal["transaction", "session"]

START_SECONDS = 20.0

CONFIGURATION = """
[databases]
* = host={host} port={target}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 100
{options}
"""


class PgBouncer:
    """A pooler that can be stopped and started again."""

    def __init__(self, port: int, child: ChildProcess, postgres: EmbeddedPostgres) -> None:
        self.port = port
        self._child = child
        self._probe = [postgres.installation.program_path("pg_isready"), "--host", LOOPBACK, "--port", str(port)]

    def url(self, database_url: str) -> str:
        """Return the URL of a database of the server behind it, through the pooler."""
        return re.sub(r":\d+/", f":{self.port}/", database_url)

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self._child.start()
        wait_until(self._answers, within=START_SECONDS, waiting_for=self._child, progress=SilentReporter())

    def stop(self) -> None:
        """Stop it, and cut its connections."""
        self._child.stop()

    def _answers(self) -> bool:
        return subprocess.run(self._probe, capture_output=True, check=False).returncode == 0


def find_or_install() -> str:
    """Return the path of PgBouncer; see `system_programs`."""
    return system_programs.find_or_install("pgbouncer", "pgbouncer")


def get_version() -> tuple[int, int]:
    """Return the version of PgBouncer, like (1, 18)."""
    text = subprocess.run([find_or_install(), "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"PgBouncer (\d+)\.(\d+)", text)
    assert match is not None, text
    return int(match[1]), int(match[2])


@contextmanager
def running_pgbouncer(
    postgres: EmbeddedPostgres, mode: PoolMode, *, pool_size: int, options: str = ""
) -> Iterator[PgBouncer]:
    """Run PgBouncer in front of a server.

    Args:
        postgres: The server.
        mode: When a client releases its server session.
        pool_size: Server sessions for each database and user.
        options: Further lines of the configuration.
    """
    path, port = find_or_install(), find_free_port()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)  # PgBouncer refuses to run as root
        users = directory / "users"
        users.write_text(f'"airflow" ""\n"{SUPERUSER}" ""\n')
        configuration = directory / "pgbouncer.ini"
        configuration.write_text(
            CONFIGURATION.format(
                host=LOOPBACK,
                target=postgres.port,
                port=port,
                users=users,
                mode=mode,
                size=pool_size,
                options=options,
            )
        )
        child = ChildProcess(
            "PgBouncer",
            [path, str(configuration)],
            log=directory / "pgbouncer.log",
            account=postgres.installation.account,
        )
        bouncer = PgBouncer(port, child, postgres)
        try:
            bouncer.start()
            yield bouncer
        finally:
            bouncer.stop()
