"""Every benchmark and check of the Makefile, in its smallest form: it runs to its end, and its last line is JSON.

Speed is not judged here: a benchmark may report misses, a check may not.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

DEADLINE = 300.0

SMALLEST: dict[str, list[str]] = {
    "bench-auth": ["ARGS=--clients 20"],
    "bench-bulk": ["ARGS=--runs 200 --instances 200 --seconds 1 --rounds 1"],
    "bench-early": ["ARGS=--runs 1 --teardown 2"],
    "bench-evaluate": ["ARGS=--instances 100"],
    "bench-fanout": [
        "ARGS=--clients 20 --rates 20 --seconds 1 --rounds 1 --no-idle --no-own-runs --only SSE WebSocket"
    ],
    "bench-fanout-journal": ["ARGS=--clients 20 --rates 20 --seconds 1 --rounds 1"],
    "bench-journal": ["ARGS=--seconds 1 --rounds 1 --workload heartbeat"],
    "bench-large-dags": ["ARGS=--seconds 1 --tasks 100 --links 5 --mebibytes 1 --instances 100 --results 20"],
    "bench-latency": ["ARGS=--seconds 1 --rounds 1 --warm-up 0.2 --rate 50"],
    "bench-long-transactions": ["ARGS=--reads 20 --rounds 1"],
    "bench-own-runs": ["ARGS=--clients 50 --rate 50 --seconds 1 --profile 0.5"],
    "bench-tokens": ["ARGS=--runs 1 --tokens 20"],
    "bench-waiters": ["ARGS=--waiters 10 --idle 1"],
    "bench-workers": ["ARGS=--workers 2 --rate 20 --seconds 1 --rounds 1 --connections 10"],
    "check-api": ["EXAMPLES=1"],
    "check-clients": ["MINUTES=0.1", "ARGS=--clients 50"],
    "check-examples": ["ARGS=--only tutorial_dag example_simplest_dag"],
    "check-hostile": ["STREAMS=30", "ARGS=--seconds 8 --copies 1"],
    "check-lossless": ["SECONDS=5"],
    "check-mutants": ["ARGS=--only 'not redacted'"],
    "check-outcome": ["CASES=20", "ARGS=--seed m"],
    "check-scenarios": ["RUNS=1", "ARGS=--collect-only -q"],
    "check-soak": ["MINUTES=0.3"],
}

WITHOUT_FIGURES = {"check-scenarios"}
"""Targets that run tests of the suite, whose last line is that of pytest."""

WITH_MISSES = {"check-hostile", "check-soak"}
"""Checks whose smallest form is too short for the steady state that they judge, or depends on other load."""


def test_every_target_is_listed() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert sorted(SMALLEST) == sorted(set(re.findall(r"^((?:bench|check)-[a-z-]+):", makefile, re.MULTILINE)))


@pytest.mark.parametrize("target", SMALLEST)
def test_the_smallest_form_runs_to_its_end(target: str) -> None:
    done = subprocess.run(
        ["make", "--silent", target, *SMALLEST[target]],
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
