"""The layout of the package, as `docs/architecture.md` describes it. The layers are checked by `make lint`."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "stream_server"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = {"auth", "authoring", "cli", "client", "domain", "http", "hub", "journal", "protocol", "server"}
MAX_LINES = 400

FUNCTIONS = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", ARCHITECTURE)))
"""Every `file:function` of the page."""


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, check=True, capture_output=True, text=True)
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).exists()]


def defined_names(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from defined_names(node.body, f"{prefix}{node.name}.")


def test_the_top_level_has_ten_packages_and_seven_modules() -> None:
    entries = {path.relative_to(PACKAGE).parts[0] for path in tracked("stream_server")}
    assert {name for name in entries if (PACKAGE / name).is_dir()} == PACKAGES
    assert len(entries - PACKAGES) <= 8, "seven modules and py.typed"


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_every_package_has_a_docstring(package: str) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text()))


def test_no_source_file_exceeds_400_lines() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in tracked("*.py", "*.sql", "*.ts", "*.tsx")}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_the_architecture_page_names_functions() -> None:
    assert len(FUNCTIONS) > 20


@pytest.mark.parametrize(("file", "name"), FUNCTIONS)
def test_functions_of_the_architecture_page_exist(file: str, name: str) -> None:
    assert name in set(defined_names(ast.parse((PACKAGE / file).read_text()).body))
