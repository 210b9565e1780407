"""How an instance can end whose trigger rule is not met yet, given how its upstream can end.

Sets of `Ends` are integers with one bit for each value of `Ends` (`bit_of`): how the upstream of a task can end is the
`|` of what is known of each upstream task. Few situations occur in a DAG, however large, so each is decided once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, reduce
from operator import or_
from typing import Final, NamedTuple

from stream_server.domain.trigger_rules import (
    ALL_ENDS,
    ALWAYS,
    ANY,
    FAILS_WITH_UPSTREAM,
    FAILURE,
    SKIPS_WITH_UPSTREAM,
    Ends,
    UpstreamStates,
    apply_rule,
)


class Situation(NamedTuple):
    """What decides how a waiting instance can end. Equal situations have equal ends."""

    rule: str
    has_upstream: bool
    may_expand: bool
    """Whether the task, or a group around it, is mapped."""

    direct: int
    """Ends of the direct upstream."""

    setups: int
    """Ends of the setups among it."""

    indirect_setups: int
    sources: int
    """Ends of the tasks that a task is mapped over, as `MappedTaskUpstreamDep` sees them: unexpanded."""

    everything: int = 0
    """Ends of all upstream instances, for rules that look at all of them in some versions of Airflow; else 0."""


def bit_of(ends: Ends) -> int:
    """Return the set that contains only these ends."""
    return 1 << ends._value_


def join_bits(sets: Iterable[int]) -> int:
    """Return the union of sets of ends."""
    return reduce(or_, sets, 0)


def _bits_where(*, any_of: Ends, none_of: Ends = Ends(0)) -> int:  # noqa: B008 # immutable
    return join_bits(bit_of(ends) for ends in ALL_ENDS if ends & any_of and not ends & none_of)


CAN_SUCCEED: Final = _bits_where(any_of=Ends.SUCCESS)
CAN_SUCCEED_OR_BE_REMOVED: Final = _bits_where(any_of=Ends.SUCCESS | Ends.REMOVED)
CAN_SKIP: Final = _bits_where(any_of=Ends.SKIPPED)
CAN_FAIL_OR_BE_REMOVED_BY_UPSTREAM: Final = _bits_where(any_of=Ends.UPSTREAM_FAILED | Ends.REMOVED)
MAY_RUN: Final = _bits_where(any_of=Ends.SUCCESS, none_of=Ends.ENDED)
FAILS: Final = _bits_where(any_of=FAILURE, none_of=Ends.SUCCESS)
HAS_FAILED: Final = join_bits(bit_of(ends) for ends in ALL_ENDS if ends & Ends.ENDED and ends & FAILURE)
MUST_FAIL: Final = join_bits(bit_of(ends) for ends in ALL_ENDS if not ends & ANY & ~FAILURE)
FAILS_WITH_UPSTREAM_ONLY: Final = bit_of(Ends.UPSTREAM_FAILED)


@lru_cache(4096)
def _ends_in(bits: int) -> frozenset[Ends]:
    return frozenset(ends for ends in ALL_ENDS if bits & bit_of(ends))


@lru_cache(16384)
def find_waiting_ends(situation: Situation, fails_before_skips: bool = False) -> Ends:
    """Return how a waiting instance can end.

    Args:
        situation: What it sees.
        fails_before_skips: Whether it sees a failed upstream task before it sees a skipped one.
    """
    setups, sources = UpstreamStates(_ends_in(situation.indirect_setups)), UpstreamStates(_ends_in(situation.sources))
    if _fails_in_next_loop(situation, setups, sources):
        return Ends.UPSTREAM_FAILED
    ends = _ends_by_rule(situation, setups, fails_before_skips=fails_before_skips)
    if ends & Ends.RUN and not sources.all_can_end_in(Ends.ENDED):
        # The rule may be met before the number of instances is known; then the task fails without being expanded.
        ends |= Ends.UPSTREAM_FAILED
    ends = _constrain_ends(ends, sources, allowed=Ends.SUCCESS)
    if not situation.may_expand:
        ends &= ~Ends.REMOVED
    # Without any possible end the scheduler detects a deadlock and fails the run.
    return ends or Ends.RUN | ANY


def _fails_in_next_loop(situation: Situation, setups: UpstreamStates, sources: UpstreamStates) -> bool:
    """Whether the next loop of the scheduler sets a task to `upstream_failed`, whatever happens until then.

    The cause of the failure exists already. If something skips the task in the same loop, the failure remains:
    `MappedTaskUpstreamDep` overwrites no failure, and `TriggerRuleDep` overwrites everything. A skipped setup is
    evaluated before the rule, though, and some rules skip where others fail.
    """
    direct = UpstreamStates(_ends_in(situation.direct))
    if sources.has_ended_in(FAILURE) and situation.rule in SKIPS_WITH_UPSTREAM:
        return not setups.has_ended_in(Ends.SKIPPED) and not direct.has_ended_in(Ends.SKIPPED)
    if _ignores_upstream(situation):
        return False
    if setups.has_ended_in(FAILURE):
        # The rule of the task is not evaluated, unless a source has already failed it.
        return not sources.any_can_end_in(FAILURE)
    fails = situation.rule in FAILS_WITH_UPSTREAM and direct.has_ended_in(FAILURE)
    return fails and not setups.has_ended_in(Ends.SKIPPED)


def _ends_by_rule(situation: Situation, setups: UpstreamStates, *, fails_before_skips: bool) -> Ends:
    if _ignores_upstream(situation):
        return Ends.RUN
    ends = apply_rule(situation.rule, UpstreamStates(_ends_in(situation.direct), _ends_in(situation.setups)))
    if fails_before_skips and ends & Ends.UPSTREAM_FAILED:
        ends &= ~Ends.SKIPPED
    if situation.everything:
        ends |= apply_rule(situation.rule, UpstreamStates(_ends_in(situation.everything)))
    return _constrain_ends(ends, setups, allowed=Ends.SUCCESS | Ends.REMOVED)


def _ignores_upstream(situation: Situation) -> bool:
    return situation.rule == ALWAYS or not situation.has_upstream


def _constrain_ends(ends: Ends, required: UpstreamStates, *, allowed: Ends) -> Ends:
    """Return the ends of a task for which, in addition to its rule, all of `required` must end in an allowed state."""
    if required.any_can_end_in(FAILURE):
        ends |= Ends.UPSTREAM_FAILED
    if required.any_can_end_in(Ends.SKIPPED):
        ends |= Ends.SKIPPED
    if required.any_can_end_in(Ends.REMOVED):
        ends |= Ends.REMOVED
    return ends if required.all_can_end_in(allowed) else ends & ~Ends.RUN
