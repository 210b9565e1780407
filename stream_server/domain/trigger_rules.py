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


def spread(ends: Ends) -> Ends:
    """Return in what an instance can end that may be run: tasks can fail, and skip themselves."""
    return ends & ~RUN | S | F | K if ends & RUN else ends


class Above(NamedTuple):
    """The instances that a rule looks at, by how they can end; how many they are matters to no rule."""

    ends: frozenset[Ends] = frozenset()
    setups: frozenset[Ends] = frozenset()
    """The setups among them."""

    def now(self, ends: Ends) -> bool:
        """Whether one of them has ended so, for good."""
        return any(one & NOW and one & ends for one in self.ends)

    def some(self, ends: Ends) -> bool:
        """Whether one of them can end so."""
        return any(one & ends for one in self.ends)

    def every(self, ends: Ends) -> bool:
        """Whether all of them can end so; true where there is none."""
        return all(one & ends for one in self.ends)

    def setups_every(self, ends: Ends) -> bool:
        """Whether all setups among them can end so."""
        return all(one & ends for one in self.setups)


def _if(condition: bool, ends: Ends) -> Ends:
    return ends if condition else 0


def _all_success(above: Above) -> Ends:
    if above.now(F | U):
        return U
    return _if(above.every(S | R), RUN) | _if(above.some(F | U), U) | _if(above.some(K), K) | _if(above.some(R), R)


def _none_failed(above: Above) -> Ends:
    if above.now(F | U):
        return U
    return _if(above.every(S | K | R), RUN) | _if(above.some(F | U), U)


def _none_failed_min_one_success(above: Above) -> Ends:
    if above.now(F | U):
        return U
    # Before 3.3, none skipped and none successful is a deadlock, which fails the run.
    empty = _if(above.every(K), K) | _if(above.every(K | R), U)
    return _if(above.every(S | K | R) and above.some(S), RUN) | _if(above.some(F | U), U) | empty


def _one_success(above: Above) -> Ends:
    if above.now(S):
        return RUN
    return _if(above.some(S), RUN) | _if(above.every(K), K) | _if(above.every(F | U | K | R), U)


def _one_failed(above: Above) -> Ends:
    if above.now(F | U):
        return RUN
    return _if(above.some(F | U), RUN) | _if(above.every(S | K | R), K)


def _one_done(above: Above) -> Ends:
    if above.now(S | F):
        return RUN
    return _if(above.some(S | F), RUN) | _if(above.every(U | K | R), K)


def _all_failed(above: Above) -> Ends:
    if above.now(S | K):
        return K
    return _if(above.every(F | U | R), RUN) | _if(above.some(S | K), K)


def _all_skipped(above: Above) -> Ends:
    if above.now(S | F | U):
        return K
    return _if(above.every(K), RUN) | _if(above.some(S | F | U), K)


def _none_skipped(above: Above) -> Ends:
    if above.now(K):
        return K
    return _if(above.every(S | F | U | R), RUN) | _if(above.some(K), K)


def _all_done(_: Above) -> Ends:
    return RUN


def _all_done_min_one_success(above: Above) -> Ends:
    if above.now(K):
        return K
    run = above.every(S | F | U | R) and above.some(S)
    return _if(run, RUN) | _if(above.some(K), K) | _if(above.every(F | U | R), U)


def _all_done_setup_success(above: Above) -> Ends:
    if not above.setups:
        return RUN
    run = any(one & S for one in above.setups)
    return _if(run, RUN) | _if(above.setups_every(K), K) | _if(above.setups_every(F | U | K | R), U)


RULES: dict[str, Callable[[Above], Ends]] = {
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

HEEDLESS = "always"
"""The rule that looks at nothing at all, not even at setups."""

RACING = frozenset({"one_success", "one_failed", "one_done", "none_failed_min_one_success"})
"""Rules that in a mapped group look, in some versions, at all instances above instead of those with the same index."""

FAILING_WITH_OTHERS = frozenset({"all_success", "none_failed", "none_failed_min_one_success"})
"""Rules by which a task is told to fail as soon as one above it has failed, whatever the others do."""

SKIPPING_WITH_OTHERS = frozenset({"all_success", "all_done", "all_done_min_one_success", "none_failed", "none_skipped"})
"""Rules by which a task is skipped only where one above it has been."""

WAITING_FOR_ALL = frozenset(
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

WANTING_HARM = frozenset({"all_failed", "one_failed", "all_skipped"})
"""Rules by which a task can be skipped although everything above it went well."""


def ends_by(rule: str, above: Above) -> Ends:
    """Return how an instance with a rule can end."""
    known = RULES.get(rule)
    return RUN | ANY if known is None else known(above)
