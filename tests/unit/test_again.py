"""Trying again must not make a suite green that is red."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import again

GOOD, BAD = "def test_it():\n    pass\n", "def test_it():\n    raise AssertionError\n"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name, text in {"good": GOOD, "bad": BAD}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    return tmp_path


def tried(here: Path, *failed: str) -> tuple[int, str]:
    """Have what failed in the last run tried again, in a project of its own."""
    noted = here / again.LAST_FAILED
    noted.parent.mkdir(parents=True)
    noted.write_text(json.dumps({f"test_{name}.py::test_it": True for name in failed}))
    done = subprocess.run(
        [sys.executable, again.__file__], cwd=here, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout


def test_what_passes_by_itself_is_told_as_unstable(here: Path) -> None:
    status, told = tried(here, "good")
    assert status == 0
    assert "unstable, passed by themselves: test_good.py::test_it" in told


@pytest.mark.parametrize("failed", [["bad"], ["good", "bad"], ["gone"]])
def test_what_fails_again_has_failed(here: Path, failed: list[str]) -> None:
    assert tried(here, *failed)[0] == 1


@pytest.mark.parametrize("failed", [[], ["good", "b", "c", "d"]], ids=["before any test", "too many"])
def test_nothing_is_tried_again_where_it_is_no_accident(here: Path, failed: list[str]) -> None:
    status, told = tried(here, *failed)
    assert status == 1
    assert "nothing is tried again" in told


def test_nothing_is_tried_again_where_no_test_has_run(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, again.__file__], cwd=tmp_path, check=False, timeout=60).returncode == 1
