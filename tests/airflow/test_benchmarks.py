"""The benchmarks on a real Airflow, in their smallest form, as `tests/smoke` runs the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.make_targets import run_to_its_end

if TYPE_CHECKING:
    from stream_server.cli.demo.stack import DemoStack

SMALLEST = {"bench-early": "--runs 1 --teardown 2", "bench-tokens": "--runs 1 --tokens 20"}


@pytest.mark.parametrize("target", SMALLEST)
def test_the_smallest_form_runs_to_its_end(stack: DemoStack, target: str) -> None:
    run_to_its_end(target, f"ARGS={SMALLEST[target]} --stack {stack.server_url} {stack.airflow_url}")
