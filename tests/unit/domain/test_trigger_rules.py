"""Every trigger rule against a copy of Airflow's code, at every moment at which the scheduler may evaluate it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_server.domain.trigger_rules import ANY, RULES, Ends, UpstreamStates, apply_rule, ends_once_run

ENDS = {state: Ends[state.upper()] for state in ("success", "failed", "upstream_failed", "skipped", "removed")}
RUNS = "it is run"


class Upstream(NamedTuple):
    """An upstream instance when the scheduler evaluates the rule."""

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
    """How an upstream instance can end."""

    ends: Ends
    is_setup: bool


@st.composite
def possible_upstreams(draw: st.DrawFn) -> list[Possible]:
    ended = st.sampled_from(sorted(ENDS.values(), key=lambda end: end.value)).map(lambda end: end | Ends.ENDED)
    undecided = st.integers(1, ANY.value).map(Ends)
    return [Possible(draw(ended | undecided), draw(st.booleans())) for _ in range(draw(st.integers(1, 3)))]


def scheduler_views(possible: Sequence[Possible]) -> Iterator[list[Upstream]]:
    """Yield what the scheduler may see: an undecided instance may have ended by then in any way, or not at all."""
    choices = [
        [state for state, end in ENDS.items() if one.ends & end] + ([] if one.ends & Ends.ENDED else [None])
        for one in possible
    ]
    for states in itertools.product(*choices):
        yield [Upstream(state, one.is_setup) for state, one in zip(states, possible, strict=True)]


@settings(max_examples=400)
@given(st.sampled_from(sorted(RULES.keys() - {"always"})), possible_upstreams(), st.booleans())
def test_rule_returns_every_end_that_airflow_can_come_to(rule: str, possible: list[Possible], before_3_3: bool) -> None:
    outcomes = {airflow(rule, view, before_3_3=before_3_3) for view in scheduler_views(possible)} - {None}
    upstream = UpstreamStates(
        frozenset(one.ends for one in possible),
        frozenset(one.ends for one in possible if one.is_setup),
    )
    ends = apply_rule(rule, upstream)
    assert bool(ends & Ends.RUN) == (RUNS in outcomes), "RUN if and only if Airflow can run it"
    for outcome in outcomes - {RUNS}:
        assert outcome is not None
        assert ends & ENDS[outcome], f"{outcome} is possible"


def test_instance_that_is_run_can_succeed_fail_or_skip_itself() -> None:
    by_itself = Ends.SUCCESS | Ends.FAILED | Ends.SKIPPED
    assert ends_once_run(Ends.RUN) is by_itself
    assert ends_once_run(Ends.RUN | Ends.UPSTREAM_FAILED) is by_itself | Ends.UPSTREAM_FAILED
    assert ends_once_run(Ends.UPSTREAM_FAILED | Ends.SKIPPED) is Ends.UPSTREAM_FAILED | Ends.SKIPPED


@pytest.mark.parametrize("ends", [*ENDS.values(), Ends.SUCCESS | Ends.ENDED, Ends.FAILED | Ends.ENDED])
def test_unknown_rule_can_do_anything(ends: Ends) -> None:
    assert ends_once_run(apply_rule("all_new", UpstreamStates(frozenset({ends})))) is ANY


@given(st.integers(0, 127), st.integers(0, 127))
def test_operators_agree_with_bits(one: int, other: int) -> None:
    assert (Ends(one) | Ends(other)).value == one | other
    assert (Ends(one) & Ends(other)).value == one & other
    assert (~Ends(one)).value == 127 & ~one
    assert bool(Ends(one)) == bool(one)
    assert Ends(one) | Ends(other) is Ends(one | other), "one object for each set, since hash and equality need that"
