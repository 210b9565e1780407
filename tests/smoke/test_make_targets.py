"""Every benchmark and check of the Makefile, in its smallest form: it runs to its end, and its last line is JSON.

Tests of other tiers run some of them (`RUN_ELSEWHERE`). Speed is not judged here: a benchmark may report misses, a
check may not.
"""

from __future__ import annotations

import ast
import re

import pytest

from support.make_targets import ROOT, RUN_ELSEWHERE, run_to_its_end

SMALLEST: dict[str, list[str]] = {
    "bench-auth": ["ARGS=--clients 20"],
    "bench-bulk": ["ARGS=--runs 200 --instances 200 --seconds 1 --rounds 1"],
    "bench-evaluate": ["ARGS=--instances 100"],
    "bench-fanout": [
        "ARGS=--clients 20 --rates 20 --seconds 1 --rounds 1 --no-idle --no-own-runs --only SSE WebSocket"
    ],
    "bench-fanout-journal": ["ARGS=--clients 20 --rates 20 --seconds 1 --rounds 1"],
    "bench-journal": ["ARGS=--seconds 1 --rounds 1 --workload transition --writers 1"],
    "bench-large-dags": ["ARGS=--seconds 1 --tasks 100 --links 5 --mebibytes 1 --instances 100 --results 20"],
    "bench-latency": ["ARGS=--seconds 1 --rounds 1 --warm-up 0.2 --rate 50"],
    "bench-long-transactions": ["ARGS=--reads 20 --rounds 1 --rows 1000"],
    "bench-migration": ["ARGS=--instances 2000 --rounds 1"],
    "bench-own-runs": ["ARGS=--clients 50 --rate 50 --seconds 1 --profile 0.5"],
    "bench-waiters": ["ARGS=--waiters 10 --idle 1 --calls mcp"],
    "bench-workers": ["ARGS=--workers 2 --rate 20 --seconds 1 --rounds 1 --connections 10"],
    "check-hostile": ["STREAMS=30", "ARGS=--seconds 8 --copies 1"],
    "check-mutants": ["ARGS=--only 'not redacted'"],
    "check-open-webui": ["ARGS=--collect-only -q"],
    "check-scenarios": ["RUNS=1", "ARGS=--collect-only -q"],
    "check-soak": ["MINUTES=0.3"],
}


def test_a_test_runs_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert sorted([*SMALLEST, *RUN_ELSEWHERE]) == sorted(
        re.findall(r"^((?:bench|check)-[a-z-]+):", makefile, re.MULTILINE)
    )


@pytest.mark.parametrize("target", RUN_ELSEWHERE)
def test_tests_of_another_tier_run_the_target(target: str) -> None:
    path = ROOT / "tests" / RUN_ELSEWHERE[target]
    collected = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    calls = [
        node
        for function in collected
        if function.name.startswith("test_")
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run_to_its_end"
    ]
    named = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    assert target in named


@pytest.mark.parametrize("target", SMALLEST)
def test_the_smallest_form_runs_to_its_end(target: str) -> None:
    run_to_its_end(target, *SMALLEST[target])
