"""Runs targets of the Makefile for benchmarks and checks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from stream_server.cli.demo.airflow import airflow_version

ROOT = Path(__file__).resolve().parents[2]

DEADLINE = 300.0

WITHOUT_FIGURES = {"check-open-webui", "check-scenarios"}
"""Targets that run tests of the suite, whose last line is that of pytest."""

WITH_MISSES = {"check-hostile", "check-soak"}
"""Checks whose smallest form is too short for the steady state that they judge, or depends on other load."""


RUN_ELSEWHERE = {
    "bench-early": "airflow/test_benchmarks.py",
    "bench-tokens": "airflow/test_benchmarks.py",
    "check-api": "integration/test_api_check.py",
    "check-clients": "integration/test_client_soak.py",
    "check-examples": "airflow/test_example_check.py",
    "check-lossless": "integration/test_lossless.py",
    "check-outcome": "airflow/test_outcome_check.py",
}
"""Targets that tests of other tiers run, by the file of the test; `tests/smoke` runs the others.

The tests need the figures of the check, or the target needs an Airflow that the tier has.
"""


def run_to_its_end(target: str, *variables: str) -> dict[str, Any]:
    """Run a target in the environment of this process, with variables of make; return its figures.

    A target of `WITHOUT_FIGURES` has none.

    Raises:
        AssertionError: It failed, its last line is no JSON, or a check has misses.
    """
    done = subprocess.run(
        ["make", "--silent", target, f"AIRFLOW={airflow_version()}", *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    output = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    if target in WITHOUT_FIGURES:
        assert done.returncode == 0, output
        return {}
    try:
        figures: dict[str, Any] = json.loads(done.stdout.rstrip().rpartition("\n")[2], parse_constant=_refuse_constant)
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
    return figures


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
