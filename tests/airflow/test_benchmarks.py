"""The benchmarks on a real Airflow, in their smallest form, as `tests/smoke` runs the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.make_targets import run_to_its_end

if TYPE_CHECKING:
    from stream_server.cli.demo.stack import DemoStack


def test_the_smallest_form_of_bench_early_runs_to_its_end(stack: DemoStack) -> None:
    run_to_its_end("bench-early", f"ARGS=--runs 1 --teardown 2 {stack_option(stack)}")


def test_the_smallest_form_of_bench_tokens_runs_to_its_end(stack: DemoStack) -> None:
    run_to_its_end("bench-tokens", f"ARGS=--runs 1 --tokens 20 {stack_option(stack)}")


def stack_option(stack: DemoStack) -> str:
    return f"--stack {stack.server_url} {stack.airflow_url}"
