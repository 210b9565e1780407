"""Responses to generated requests are as documented, and none is a server error."""

from __future__ import annotations

from support.make_targets import run_to_its_end

SEED = 7


def test_every_response_is_documented_and_none_is_a_server_error() -> None:
    figures = run_to_its_end("check-api", "EXAMPLES=8", f"ARGS=--seed {SEED}")
    assert {"200", "201", "404", "422"} <= figures["statuses"].keys()
    assert sum(figures["statuses"].values()) > 100
