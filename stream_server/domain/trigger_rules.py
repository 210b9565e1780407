"""Airflow's trigger rules on sets of possible end states: how an instance can end, given how its upstream can end.

What is not known yet is a set of possibilities. A rule returns every state that Airflow can come to, in whatever order
the upstream instances finish; a state that it leaves out is impossible. Where Airflow 3.0 to 3.3 differ, it returns
what any of them can come to. Source: `TriggerRuleDep._evaluate_direct_relatives`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from typing_extensions import Self, override


class Ends(enum.Flag):
    """States in which a task instance can end, and two marks.

    The operators look their result up in a table, because those of `enum.Flag` create an object for each result: with
    them a prediction takes 1.7 times as long (1,000 tasks, Python 3.11).
    """

    SUCCESS = 1
    FAILED = 2
    UPSTREAM_FAILED = 4
    SKIPPED = 8
    REMOVED = 16

    ENDED = 32
    """The instance has ended in this state; only a user can change that."""

    RUN = 64
    """The instance is run, and what it does decides how it ends: see `ends_once_run`."""

    @override
    def __or__(self, other: Self) -> Self:
        return _ALL_SETS[self._value_ | other._value_]

    @override
    def __and__(self, other: Self) -> Self:
        return _ALL_SETS[self._value_ & other._value_]

    @override
    def __invert__(self) -> Self:
        return _ALL_SETS[_ALL_BITS ^ self._value_]

    @override
    def __bool__(self) -> bool:
        return self._value_ != 0

    # There is one object for each set, so identity is equality.
    __hash__ = object.__hash__


_ALL_BITS: Final = 127
_ALL_SETS = [Ends(bits) for bits in range(_ALL_BITS + 1)]

ALL_ENDS: Final = tuple(_ALL_SETS)
"""Each set of ends, at the index of its value."""

NONE: Final = Ends(0)
ANY: Final = Ends.SUCCESS | Ends.FAILED | Ends.UPSTREAM_FAILED | Ends.SKIPPED | Ends.REMOVED
FAILURE: Final = Ends.FAILED | Ends.UPSTREAM_FAILED


def ends_once_run(ends: Ends) -> Ends:
    """Return the ends of an instance, with `RUN` replaced by those that a task can come to: it can also skip itself."""
    return ends & ~Ends.RUN | Ends.SUCCESS | Ends.FAILED | Ends.SKIPPED if ends & Ends.RUN else ends


class UpstreamStates(NamedTuple):
    """How the instances that a rule looks at can end. How many of them there are matters to no rule."""

    ends: frozenset[Ends] = frozenset()
    setups: frozenset[Ends] = frozenset()
    """The setups among them."""

    def has_ended_in(self, ends: Ends) -> bool:
        """Whether one of them has already ended in one of these states."""
        return any(one & Ends.ENDED and one & ends for one in self.ends)

    def any_can_end_in(self, ends: Ends) -> bool:
        return any(one & ends for one in self.ends)

    def all_can_end_in(self, ends: Ends) -> bool:
        """Whether each of them can end in one of these states; true if there are none."""
        return all(one & ends for one in self.ends)

    def all_setups_can_end_in(self, ends: Ends) -> bool:
        return all(one & ends for one in self.setups)


def _ends_if(condition: bool, ends: Ends) -> Ends:
    return ends if condition else NONE


def _all_success(upstream: UpstreamStates) -> Ends:
    if upstream.has_ended_in(FAILURE):
        return Ends.UPSTREAM_FAILED
    return (
        _ends_if(upstream.all_can_end_in(Ends.SUCCESS | Ends.REMOVED), Ends.RUN)
        | _ends_if(upstream.any_can_end_in(FAILURE), Ends.UPSTREAM_FAILED)
        | _ends_if(upstream.any_can_end_in(Ends.SKIPPED), Ends.SKIPPED)
        | _ends_if(upstream.any_can_end_in(Ends.REMOVED), Ends.REMOVED)
    )


def _none_failed(upstream: UpstreamStates) -> Ends:
    if upstream.has_ended_in(FAILURE):
        return Ends.UPSTREAM_FAILED
    return _ends_if(upstream.all_can_end_in(~FAILURE & ANY), Ends.RUN) | _ends_if(
        upstream.any_can_end_in(FAILURE), Ends.UPSTREAM_FAILED
    )


def _none_failed_min_one_success(upstream: UpstreamStates) -> Ends:
    if upstream.has_ended_in(FAILURE):
        return Ends.UPSTREAM_FAILED
    can_run = upstream.all_can_end_in(~FAILURE & ANY) and upstream.any_can_end_in(Ends.SUCCESS)
    return (
        _ends_if(can_run, Ends.RUN)
        | _ends_if(upstream.any_can_end_in(FAILURE), Ends.UPSTREAM_FAILED)
        | _ends_if(upstream.all_can_end_in(Ends.SKIPPED), Ends.SKIPPED)
        # Before 3.3, no skipped and no successful instance is a deadlock, which fails the run.
        | _ends_if(upstream.all_can_end_in(Ends.SKIPPED | Ends.REMOVED), Ends.UPSTREAM_FAILED)
    )


def _one_success(upstream: UpstreamStates) -> Ends:
    if upstream.has_ended_in(Ends.SUCCESS):
        return Ends.RUN
    return (
        _ends_if(upstream.any_can_end_in(Ends.SUCCESS), Ends.RUN)
        | _ends_if(upstream.all_can_end_in(Ends.SKIPPED), Ends.SKIPPED)
        | _ends_if(upstream.all_can_end_in(~Ends.SUCCESS & ANY), Ends.UPSTREAM_FAILED)
    )


def _one_failed(upstream: UpstreamStates) -> Ends:
    if upstream.has_ended_in(FAILURE):
        return Ends.RUN
    return _ends_if(upstream.any_can_end_in(FAILURE), Ends.RUN) | _ends_if(
        upstream.all_can_end_in(~FAILURE & ANY), Ends.SKIPPED
    )


def _one_done(upstream: UpstreamStates) -> Ends:
    done = Ends.SUCCESS | Ends.FAILED
    if upstream.has_ended_in(done):
        return Ends.RUN
    return _ends_if(upstream.any_can_end_in(done), Ends.RUN) | _ends_if(
        upstream.all_can_end_in(~done & ANY), Ends.SKIPPED
    )


def _all_failed(upstream: UpstreamStates) -> Ends:
    other = Ends.SUCCESS | Ends.SKIPPED
    if upstream.has_ended_in(other):
        return Ends.SKIPPED
    return _ends_if(upstream.all_can_end_in(FAILURE | Ends.REMOVED), Ends.RUN) | _ends_if(
        upstream.any_can_end_in(other), Ends.SKIPPED
    )


def _all_skipped(upstream: UpstreamStates) -> Ends:
    other = Ends.SUCCESS | FAILURE
    if upstream.has_ended_in(other):
        return Ends.SKIPPED
    return _ends_if(upstream.all_can_end_in(Ends.SKIPPED), Ends.RUN) | _ends_if(
        upstream.any_can_end_in(other), Ends.SKIPPED
    )


def _none_skipped(upstream: UpstreamStates) -> Ends:
    if upstream.has_ended_in(Ends.SKIPPED):
        return Ends.SKIPPED
    return _ends_if(upstream.all_can_end_in(~Ends.SKIPPED & ANY), Ends.RUN) | _ends_if(
        upstream.any_can_end_in(Ends.SKIPPED), Ends.SKIPPED
    )


def _all_done(_: UpstreamStates) -> Ends:
    return Ends.RUN


def _all_done_min_one_success(upstream: UpstreamStates) -> Ends:
    if upstream.has_ended_in(Ends.SKIPPED):
        return Ends.SKIPPED
    can_run = upstream.all_can_end_in(~Ends.SKIPPED & ANY) and upstream.any_can_end_in(Ends.SUCCESS)
    return (
        _ends_if(can_run, Ends.RUN)
        | _ends_if(upstream.any_can_end_in(Ends.SKIPPED), Ends.SKIPPED)
        | _ends_if(upstream.all_can_end_in(FAILURE | Ends.REMOVED), Ends.UPSTREAM_FAILED)
    )


def _all_done_setup_success(upstream: UpstreamStates) -> Ends:
    if not upstream.setups:
        return Ends.RUN
    return (
        _ends_if(any(one & Ends.SUCCESS for one in upstream.setups), Ends.RUN)
        | _ends_if(upstream.all_setups_can_end_in(Ends.SKIPPED), Ends.SKIPPED)
        | _ends_if(upstream.all_setups_can_end_in(~Ends.SUCCESS & ANY), Ends.UPSTREAM_FAILED)
    )


RULES: dict[str, Callable[[UpstreamStates], Ends]] = {
    "all_success": _all_success,
    "all_failed": _all_failed,
    "all_done": _all_done,
    "all_done_min_one_success": _all_done_min_one_success,
    "all_done_setup_success": _all_done_setup_success,
    "all_skipped": _all_skipped,
    "always": _all_done,
    "none_failed": _none_failed,
    "none_failed_min_one_success": _none_failed_min_one_success,
    "none_skipped": _none_skipped,
    "one_done": _one_done,
    "one_failed": _one_failed,
    "one_success": _one_success,
}
"""By name (`airflow.task.trigger_rule.TriggerRule`). Nothing is predicted for other rules."""

ALWAYS = "always"
"""The rule that ignores everything upstream, including setups."""

VERSION_DEPENDENT_RULES = frozenset({"one_success", "one_failed", "one_done", "none_failed_min_one_success"})
"""Rules that inside a mapped group look at all upstream instances in some versions of Airflow, and only at those with
the same index in others."""

FAILS_WITH_UPSTREAM = frozenset({"all_success", "none_failed", "none_failed_min_one_success"})
"""Rules that set a task to `upstream_failed` as soon as one upstream task has failed."""

SKIPS_WITH_UPSTREAM = frozenset({"all_success", "all_done", "all_done_min_one_success", "none_failed", "none_skipped"})
"""Rules that skip a task only if an upstream task was skipped."""

WAITS_FOR_ALL = frozenset(
    {
        "all_success",
        "all_failed",
        "all_done",
        "all_done_min_one_success",
        "all_skipped",
        "none_failed",
        "none_failed_min_one_success",
        "none_skipped",
    }
)
"""Rules that run a task only after all upstream tasks have ended."""

MAY_SKIP_ON_SUCCESS = frozenset({"all_failed", "one_failed", "all_skipped"})
"""Rules that can skip a task although all upstream tasks succeeded."""

RUNS_ON_FAILURE = frozenset({"all_failed", "one_failed"})
"""Rules that run a task only if something upstream has failed."""


# Many instances of a run see the same, so the cache saves most of the work of a prediction.
@lru_cache(maxsize=4096)
def apply_rule(rule: str, upstream: UpstreamStates) -> Ends:
    """Return how an instance with a rule can end."""
    known = RULES.get(rule)
    return Ends.RUN | ANY if known is None else known(upstream)
