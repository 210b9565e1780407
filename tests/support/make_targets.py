"""Runs targets of the Makefile for benchmarks and checks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

DEADLINE = 300.0

WITHOUT_FIGURES = {"check-open-webui", "check-scenarios"}
"""Targets that run tests of the suite, whose last line is that of pytest."""

WITH_MISSES = {"check-hostile", "check-soak"}
"""Checks whose smallest form is too short for the steady state that they judge, or depends on other load."""


def run_to_its_end(target: str, *variables: str) -> None:
    """Run a target with variables of make.

    Raises:
        AssertionError: It failed, its last line is no JSON, or a check has misses.
    """
    done = subprocess.run(
        ["make", "--silent", target, *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    output = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    if target in WITHOUT_FIGURES:
        assert done.returncode == 0, output
        return
    try:
        figures = json.loads(done.stdout.rstrip().rpartition("\n")[2], parse_constant=_refuse_constant)
    except ValueError as error:
        raise AssertionError(f"The last line is no JSON: {error}\n{output}") from error
    misses = figures["misses"]
    if target.startswith("check-") and target not in WITH_MISSES:
        assert (done.returncode, misses or []) == (0, []), output
    else:
        assert done.returncode == 0 or misses, output
        assert not figures.get("lost"), output
        assert not figures.get("doubled"), output
        assert "Traceback" not in done.stderr, output


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
