"""How a task instance can end, given how those above it can: Airflow's trigger rules, on sets of ends.

What is not known is a set of possibilities, so each instance has a set of ends. A rule returns every end that Airflow
can come to, in whatever order the instances above finish; an end that it leaves out is impossible. Where Airflow 3.0 to
3.3 differ, it returns what any of them can come to (`TriggerRuleDep._evaluate_direct_relatives`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

Ends: TypeAlias = int
"""States in which a task instance can end, as bits; an `enum.IntFlag` would take most of the time of a prediction."""

S: Final = 1
"""`success`"""
F: Final = 2
"""`failed`"""
U: Final = 4
"""`upstream_failed`"""
K: Final = 8
"""`skipped`"""
R: Final = 16
"""`removed`"""
NOW: Final = 32
"""The instance has ended so, and nothing but a person can change it."""

RUN: Final = 64
"""The instance is run, and ends by itself: see `spread`."""

ANY: Final = S | F | U | K | R


def ends_once_run(ends: Ends) -> Ends:
    """Return in what an instance can end that may be run: tasks can fail, and skip themselves."""
    return ends & ~RUN | S | F | K if ends & RUN else ends


class UpstreamStates(NamedTuple):
    """The instances that a rule looks at, by how they can end; how many they are matters to no rule."""

    ends: frozenset[Ends] = frozenset()
    setups: frozenset[Ends] = frozenset()
    """The setups among them."""

    def has_ended_in(self, ends: Ends) -> bool:
        """Whether one of them has ended so, for good."""
        return any(one & NOW and one & ends for one in self.ends)

    def any_can_end_in(self, ends: Ends) -> bool:
        """Whether one of them can end so."""
        return any(one & ends for one in self.ends)

    def all_can_end_in(self, ends: Ends) -> bool:
        """Whether all of them can end so; true where there is none."""
        return all(one & ends for one in self.ends)

    def all_setups_can_end_in(self, ends: Ends) -> bool:
        """Whether all setups among them can end so."""
        return all(one & ends for one in self.setups)


def _ends_if(condition: bool, ends: Ends) -> Ends:
    return ends if condition else 0


def _all_success(above: UpstreamStates) -> Ends:
    if above.has_ended_in(F | U):
        return U
    return (
        _ends_if(above.all_can_end_in(S | R), RUN)
        | _ends_if(above.any_can_end_in(F | U), U)
        | _ends_if(above.any_can_end_in(K), K)
        | _ends_if(above.any_can_end_in(R), R)
    )


def _none_failed(above: UpstreamStates) -> Ends:
    if above.has_ended_in(F | U):
        return U
    return _ends_if(above.all_can_end_in(S | K | R), RUN) | _ends_if(above.any_can_end_in(F | U), U)


def _none_failed_min_one_success(above: UpstreamStates) -> Ends:
    if above.has_ended_in(F | U):
        return U
    # Before 3.3, none skipped and none successful is a deadlock, which fails the run.
    empty = _ends_if(above.all_can_end_in(K), K) | _ends_if(above.all_can_end_in(K | R), U)
    return (
        _ends_if(above.all_can_end_in(S | K | R) and above.any_can_end_in(S), RUN)
        | _ends_if(above.any_can_end_in(F | U), U)
        | empty
    )


def _one_success(above: UpstreamStates) -> Ends:
    if above.has_ended_in(S):
        return RUN
    return (
        _ends_if(above.any_can_end_in(S), RUN)
        | _ends_if(above.all_can_end_in(K), K)
        | _ends_if(above.all_can_end_in(F | U | K | R), U)
    )


def _one_failed(above: UpstreamStates) -> Ends:
    if above.has_ended_in(F | U):
        return RUN
    return _ends_if(above.any_can_end_in(F | U), RUN) | _ends_if(above.all_can_end_in(S | K | R), K)


def _one_done(above: UpstreamStates) -> Ends:
    if above.has_ended_in(S | F):
        return RUN
    return _ends_if(above.any_can_end_in(S | F), RUN) | _ends_if(above.all_can_end_in(U | K | R), K)


def _all_failed(above: UpstreamStates) -> Ends:
    if above.has_ended_in(S | K):
        return K
    return _ends_if(above.all_can_end_in(F | U | R), RUN) | _ends_if(above.any_can_end_in(S | K), K)


def _all_skipped(above: UpstreamStates) -> Ends:
    if above.has_ended_in(S | F | U):
        return K
    return _ends_if(above.all_can_end_in(K), RUN) | _ends_if(above.any_can_end_in(S | F | U), K)


def _none_skipped(above: UpstreamStates) -> Ends:
    if above.has_ended_in(K):
        return K
    return _ends_if(above.all_can_end_in(S | F | U | R), RUN) | _ends_if(above.any_can_end_in(K), K)


def _all_done(_: UpstreamStates) -> Ends:
    return RUN


def _all_done_min_one_success(above: UpstreamStates) -> Ends:
    if above.has_ended_in(K):
        return K
    run = above.all_can_end_in(S | F | U | R) and above.any_can_end_in(S)
    return _ends_if(run, RUN) | _ends_if(above.any_can_end_in(K), K) | _ends_if(above.all_can_end_in(F | U | R), U)


def _all_done_setup_success(above: UpstreamStates) -> Ends:
    if not above.setups:
        return RUN
    run = any(one & S for one in above.setups)
    return (
        _ends_if(run, RUN)
        | _ends_if(above.all_setups_can_end_in(K), K)
        | _ends_if(above.all_setups_can_end_in(F | U | K | R), U)
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
"""By name (`airflow.task.trigger_rule.TriggerRule`). Of a rule that is not here, nothing is foreseen."""

ALWAYS = "always"
"""The rule that looks at nothing at all, not even at setups."""

VERSION_DEPENDENT_RULES = frozenset({"one_success", "one_failed", "one_done", "none_failed_min_one_success"})
"""Rules that in a mapped group look, in some versions, at all instances above instead of those with the same index."""

FAILS_WITH_UPSTREAM = frozenset({"all_success", "none_failed", "none_failed_min_one_success"})
"""Rules by which a task is told to fail as soon as one above it has failed, whatever the others do."""

SKIPS_WITH_UPSTREAM = frozenset({"all_success", "all_done", "all_done_min_one_success", "none_failed", "none_skipped"})
"""Rules by which a task is skipped only where one above it has been."""

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
"""Rules by which a task is not run before all above it have ended."""

MAY_SKIP_ON_SUCCESS = frozenset({"all_failed", "one_failed", "all_skipped"})
"""Rules by which a task can be skipped although everything above it went well."""


def apply_rule(rule: str, above: UpstreamStates) -> Ends:
    """Return how an instance with a rule can end."""
    known = RULES.get(rule)
    return RUN | ANY if known is None else known(above)
