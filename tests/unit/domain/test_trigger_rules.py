"""Every rule against a copy of Airflow's own decision, at every moment at which the scheduler may look."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_server.domain.trigger_rules import (
    ANY,
    NOW,
    RULES,
    RUN,
    Ends,
    F,
    K,
    R,
    S,
    U,
    UpstreamStates,
    apply_rule,
    ends_once_run,
)

BITS = {"success": S, "failed": F, "upstream_failed": U, "skipped": K, "removed": R}
RUNS = "it is run"


class Upstream(NamedTuple):
    """A task instance above, at the moment at which somebody looks."""

    state: str | None
    is_setup: bool


def airflow(rule: str, upstreams: Sequence[Upstream], *, before_3_3: bool) -> str | None:  # noqa: C901, PLR0911, PLR0912
    """`TriggerRuleDep._evaluate_direct_relatives` of Airflow 3.3.2: the state it sets, `RUNS`, or `None` to wait."""
    done = [one for one in upstreams if one.state is not None]
    success, skipped, failed, upstream_failed, removed = (
        sum(one.state == state for one in done)
        for state in ("success", "skipped", "failed", "upstream_failed", "removed")
    )
    upstream = len(upstreams)
    upstream_done = len(done) >= upstream
    upstream_setup = sum(one.is_setup for one in upstreams)
    success_setup = sum(one.is_setup and one.state == "success" for one in done)
    skipped_setup = sum(one.is_setup and one.state == "skipped" for one in done)
    harmed = bool(failed or upstream_failed)
    if rule == "all_success":
        if harmed:
            return "upstream_failed"
        if skipped:
            return "skipped"
        return RUNS if upstream - success - removed <= 0 else None
    if rule == "all_failed":
        if success or skipped:
            return "skipped"
        return RUNS if upstream - failed - upstream_failed - removed <= 0 else None
    if rule == "one_success":
        if upstream_done and len(done) == skipped:
            return "skipped"
        if upstream_done and success <= 0:
            return "upstream_failed"
        return RUNS if success > 0 else None
    if rule == "one_failed":
        if upstream_done and not harmed:
            return "skipped"
        return RUNS if harmed else None
    if rule == "one_done":
        if upstream_done and not (failed or success):
            return "skipped"
        return RUNS if success + failed > 0 else None
    if rule == "none_failed":
        if harmed:
            return "upstream_failed"
        return RUNS if upstream - success - skipped - removed <= 0 else None
    if rule == "none_failed_min_one_success":
        if harmed:
            return "upstream_failed"
        if skipped == upstream:
            return "skipped"
        if upstream_done and success == 0:
            return None if before_3_3 else "upstream_failed"
        return RUNS if upstream - success - skipped - removed <= 0 and success > 0 else None
    if rule == "none_skipped":
        if skipped:
            return "skipped"
        return RUNS if upstream_done else None
    if rule == "all_skipped":
        if success or harmed:
            return "skipped"
        return RUNS if upstream - skipped <= 0 else None
    if rule == "all_done_min_one_success":
        if skipped:
            return "skipped"
        if success + failed + upstream_failed + removed >= upstream and success == 0:
            return "upstream_failed"
        return RUNS if success + failed + upstream_failed >= upstream - removed and success else None
    if rule == "all_done_setup_success":
        if upstream_done and upstream_setup and skipped_setup >= upstream_setup:
            return "skipped"
        if upstream_done and upstream_setup and success_setup == 0:
            return "upstream_failed"
        return RUNS if upstream_done else None
    assert rule == "all_done"
    return RUNS if upstream_done else None


class Possible(NamedTuple):
    """How an instance above can end."""

    ends: Ends
    is_setup: bool


@st.composite
def possibles(draw: st.DrawFn) -> list[Possible]:
    ended = st.sampled_from([S, F, U, K, R]).map(lambda end: end | NOW)
    return [Possible(draw(ended | st.integers(1, ANY)), draw(st.booleans())) for _ in range(draw(st.integers(1, 3)))]


def looks(above: Sequence[Possible]) -> Iterator[list[Upstream]]:
    """Yield what the scheduler may see: those that are not over yet may have ended in any way by then, or not."""
    choices = [
        [state for state, bit in BITS.items() if one.ends & bit] + ([] if one.ends & NOW else [None]) for one in above
    ]
    for states in itertools.product(*choices):
        yield [Upstream(state, one.is_setup) for state, one in zip(states, above, strict=True)]


@settings(max_examples=400)
@given(st.sampled_from(sorted(RULES.keys() - {"always"})), possibles(), st.booleans())
def test_a_rule_leaves_out_nothing_that_airflow_may_come_to(
    rule: str,
    above: list[Possible],
    before_3_3: bool,
) -> None:
    outcomes = {airflow(rule, look, before_3_3=before_3_3) for look in looks(above)} - {None}
    seen = UpstreamStates(
        frozenset(one.ends for one in above),
        frozenset(one.ends for one in above if one.is_setup),
    )
    ends = apply_rule(rule, seen)
    assert bool(ends & RUN) == (RUNS in outcomes), "run, if and only if it can be"
    for outcome in outcomes - {RUNS}:
        assert outcome is not None
        assert ends & BITS[outcome], f"{outcome} is possible"


def test_an_instance_that_is_run_can_fail_and_skip_itself() -> None:
    assert ends_once_run(RUN) == S | F | K
    assert ends_once_run(RUN | U) == S | F | K | U
    assert ends_once_run(U | K) == U | K


@pytest.mark.parametrize("ends", [S, F, U, K, R, S | NOW, F | NOW])
def test_a_rule_that_nobody_knows_may_do_anything(ends: Ends) -> None:
    assert ends_once_run(apply_rule("all_new", UpstreamStates(frozenset({ends})))) == ANY


def test_the_rules_are_those_of_airflow() -> None:
    """Of all versions: `airflow.task.trigger_rule.TriggerRule` of 3.3, which has those of 3.0."""
    assert RULES.keys() == {
        *("all_success", "all_failed", "all_done", "all_done_min_one_success", "all_done_setup_success"),
        *("one_success", "one_failed", "one_done", "none_failed", "none_skipped", "none_failed_min_one_success"),
        *("all_skipped", "always"),
    }
