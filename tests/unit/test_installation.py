"""The package behaves the same under `python -O`, and without source files."""

from __future__ import annotations

import ast
import compileall
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stream_server

PACKAGE = Path(stream_server.__file__).parent

PURE_CALLS = {"isinstance", "len", "all", "any", "list", "folder.iterdir"}

PROGRAM = """
import sys
from stream_server.http.docs.openapi import build_openapi
from stream_server.hub.hub import Hub
from stream_server.errors import JournalUnreachable
assert False, "not under -O"
hub = Hub(None, max_queued_bytes=1, observer=None)
try:
    hub._require_cursor()
except JournalUnreachable:
    sys.stdout.write(f"{len(build_openapi()['paths'])} {__import__('stream_server').__file__}")
"""


def test_asserts_have_no_side_effects() -> None:
    """`python -O` removes them."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                parts = list(ast.walk(node.test))
                assert not [one for one in parts if isinstance(one, ast.Await | ast.NamedExpr | ast.Yield)], path
                calls = {ast.unparse(one.func) for one in parts if isinstance(one, ast.Call)}
                assert calls <= PURE_CALLS, f"{path}:{node.lineno}"


@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_an_installation_of_bytecode_alone_works(flag: str, tmp_path: Path) -> None:
    target = tmp_path / "stream_server"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "web", "demo"))
    assert compileall.compile_dir(target, quiet=2, legacy=True, optimize=len(flag) - 1)
    for source in target.rglob("*.py"):
        source.unlink()
    done = subprocess.run(
        [sys.executable, flag, "-c", PROGRAM], cwd=tmp_path, capture_output=True, timeout=60, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    paths, file = done.stdout.split(" ", 1)
    assert int(paths) > 10
    assert Path(file) == target / "__init__.pyc"
