"""One random run of one random DAG, and the prediction at each moment.

A moment is a loop of the scheduler, or an action of a worker. Predictions are compared with how the run ended.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any, NamedTuple

from airflow.serialization.serialized_objects import DagSerialization

from stream_server.domain.graph import Graph
from stream_server.domain.judgement import PossibleStates
from stream_server.domain.outcome import FailureKnown, WatchOptions, evaluate
from stream_server.domain.prediction import UNSUCCESSFUL_STATES, Prediction
from stream_server.domain.run_state import RunKey, RunState
from stream_server.domain.task_instances import TaskInstance
from stream_server.domain.trigger_rules import ANY, NONE, Ends
from stream_server.protocol.frames import RunInfo
from support.outcome_clock import CLOCK
from support.outcome_dags import DAG_ID, DagMaker
from support.outcome_kinds import PREDICTION_KINDS, prediction_kind
from support.outcome_scheduler import FINAL, UNFINISHED_WORK, InstanceKey, Row, Run, SchedulerDatabase

KEY = RunKey(DAG_ID, "run")
MOMENTS = 300
"""A run with more moments counts as hanging."""

SOME_TIME = datetime(2026, 1, 1, tzinfo=timezone.utc)

ENDS = {state: Ends[state.upper()] for state in ("success", "failed", "upstream_failed", "skipped", "removed")}

DEFAULT_OPTIONS = ""
"""Key of the decision without a result task."""


class WorkerBehaviour(NamedTuple):
    """How the workers of a case behave."""

    eager: float = 0.5
    """Share of the moments in which a worker acts."""

    fail: float = 0.0
    skip: float = 0.0
    retry: float = 0.0
    decide: bool = False
    """Whether tasks that can skip others do so, and lists have any length."""

    failing: str | None = None
    """Task that always fails."""

    skipping: str | None = None
    """Task that always skips itself."""


@dataclass
class Case:
    """A DAG and the behaviour of its workers; everything follows from the seed."""

    seed: str
    branching: bool = field(init=False)
    text: str = field(init=False)
    graph: Graph = field(init=False)
    sources: frozenset[str] = field(init=False)
    behaviour: WorkerBehaviour = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(f"{self.seed}/dag")
        self.branching = rng.random() < 0.5
        dag = DagMaker(rng, branching=self.branching).make()
        self.text = json.dumps(DagSerialization.to_dict(dag))
        self.graph = Graph.parse(self.text)
        self.sources = frozenset().union(*map(self.graph.expansion_sources, self.graph.tasks))
        skip = rng.choice([0.0, 0.15]) if self.branching else 0.0
        self.behaviour = WorkerBehaviour(
            rng.choice([0.5, 0.7, 0.85]), rng.choice([0.1, 0.25, 0.5]), skip, 0.1, decide=self.branching
        )


class Moment(NamedTuple):
    """The state, and the prediction."""

    rows: Mapping[InstanceKey, Row]
    state: str
    possible_states: Mapping[str, PossibleStates]
    decisions: Mapping[str, FailureKnown]
    """The decision by result task; by `DEFAULT_OPTIONS` without a result task."""


class SimulatedRun(NamedTuple):
    """A run from its creation to its end."""

    moments: list[Moment]
    misread: list[str]
    """Tasks whose structure was parsed differently than Airflow parses it."""

    @property
    def ended(self) -> bool:
        return self.moments[-1].state in FINAL

    def fails(self, option: str) -> bool:
        """Whether the outcome is a failure. A skip is none, unless the run fails; an empty mapping is an empty list."""
        states = {row.state for (name, _), row in self.moments[-1].rows.items() if name == option}
        if states & {"failed", "upstream_failed"} or states == {"removed"}:
            return True
        return self._run_fails and not self._is_empty(option) and "success" not in states

    def may_fail(self, option: str) -> bool:
        """Whether a failure is right. Mapped over values of which some failed, a task may be empty, or have failed."""
        return self.fails(option) or (self._run_fails and self._is_empty(option))

    @property
    def _run_fails(self) -> bool:
        return self.moments[-1].state == "failed"

    def _is_empty(self, task_id: str) -> bool:
        rows = {index: row for (name, index), row in self.moments[-1].rows.items() if name == task_id}
        return rows.keys() == {-1} and rows[-1].state == "skipped" and not rows[-1].dated

    def first_reported_at(self, option: str) -> int | None:
        """Return the first moment at which a failure was reported."""
        return next((number for number, one in enumerate(self.moments) if option in one.decisions), None)


def simulate(
    case: Case, field: SchedulerDatabase, *, until: int | None = None, then: WorkerBehaviour | None = None
) -> SimulatedRun:
    """Simulate a run.

    Args:
        case: The case.
        field: The database.
        until: Last moment that follows the seed; all do by default.
        then: Behaviour of the workers after that.
    """
    rng = random.Random(f"{case.seed}/life")
    CLOCK.restart()
    run = Run(field, case.text, case.sources, random.Random(f"{case.seed}/deps"))
    moments = [_moment(case, run)]
    misread = _misread_tasks(case.graph, run)
    behaviour = case.behaviour
    try:
        while run.state not in FINAL and len(moments) < MOMENTS:
            if then is not None and behaviour is not then and until is not None and len(moments) > until:
                behaviour = then
                run.shuffle(rng)
            unfinished = sorted(instance for instance, row in moments[-1].rows.items() if row.state in UNFINISHED_WORK)
            # A loop of the scheduler that changed nothing is not repeated.
            idle = len(moments) > 1 and moments[-1].rows == moments[-2].rows
            if unfinished and (idle or rng.random() < behaviour.eager):
                _work(run, rng.choice(unfinished), rng, behaviour)
            else:
                run.schedule()
            moments.append(_moment(case, run, with_prediction=then is None))
    finally:
        run.close()
    return SimulatedRun(moments, misread)


def _work(run: Run, instance: InstanceKey, rng: random.Random, behaviour: WorkerBehaviour) -> None:
    if rng.random() < 0.1:
        run.start(instance)
        return
    length = rng.choice([0, 1, 2, 2, 3] if behaviour.decide else [1, 2, 2, 3])
    draw = rng.random() - behaviour.fail
    task: Any = run.dag.task_dict[instance[0]]
    if draw < 0 or instance[0] == behaviour.failing:
        run.fail(instance)
    elif (draw := draw - behaviour.skip) < 0 or instance[0] == behaviour.skipping:
        run.skip(instance)
    elif task.task_type == "LoopGateOperator":
        # It is not retried: its delay is Airflow's default of minutes.
        run.complete_gate(instance, stops=rng.random() < 0.4)
    elif draw - behaviour.retry < 0:
        run.retry(instance)
    elif behaviour.decide and task.inherits_from_skipmixin:
        run.decide(instance, choose_skipped(run, task, rng))
    else:
        run.succeed(instance, length)


def choose_skipped(run: Run, task: Any, rng: random.Random) -> list[str]:
    """Return the tasks that a branching or short-circuiting task skips (`BranchMixIn`, `ShortCircuitOperator`)."""
    direct = sorted(task.downstream_task_ids)
    if "Branch" in task.task_type:
        followed = {one for one in direct if rng.random() < 0.5}
        for one in sorted(followed):
            followed |= run.dag.task_dict[one].get_flat_relative_ids(upstream=False)
        return [one for one in direct if one not in followed]
    if rng.random() < 0.5:
        return []
    ids = sorted(task.get_flat_relative_ids(upstream=False)) if rng.random() < 0.5 else direct
    return [one for one in ids if not run.dag.task_dict[one].is_teardown]


def _misread_tasks(graph: Graph, run: Run) -> list[str]:
    """Return the tasks whose structure was parsed differently than Airflow parses it."""
    found: list[str] = []
    for task_id, task in run.dag.task_dict.items():
        setups = set() if task.is_teardown else {one.task_id for one in task.get_upstreams_only_setups()}
        theirs = (
            set(task.upstream_task_ids),
            setups - task.upstream_task_ids,
            [group.group_id for group in task.iter_mapped_task_groups()],
            str(getattr(task.trigger_rule, "value", task.trigger_rule)),
        )
        ours = (
            set(graph.upstream[task_id]),
            set(graph.indirect_setups.get(task_id, ())),
            list(graph.mapped_group_ids(task_id)),
            graph.tasks[task_id].trigger_rule,
        )
        if ours != theirs:
            found.append(f"{task_id}: {ours} is {theirs}")
    return found


def _moment(case: Case, run: Run, *, with_prediction: bool = True) -> Moment:
    rows = run.rows()
    if not with_prediction:
        return Moment(rows, run.state, {}, {})
    info = RunInfo(state=run.state, queued_at=None, start_date=None, end_date=None, clear_number=0)
    state = RunState(KEY, info, case.graph)
    for (task_id, map_index), row in rows.items():
        end_date = SOME_TIME if row.dated else None
        instance = TaskInstance(row.state, row.try_number, end_date=end_date)
        state.add_instance(task_id, map_index, instance, row.iteration)
    states = {task_id: instances.by_state for task_id, instances in state.tasks.items()}
    whole = Prediction(case.graph, states, state.iterations.newest)
    decisions: dict[str, FailureKnown] = {}
    options = [WatchOptions(result_tasks=(task_id,)) for task_id in case.graph.tasks]
    if case.graph.only_leaf is None:
        options.append(WatchOptions())
    for option in options:
        decision = evaluate(state, option)
        # A failure without a task comes with the end of the run, and is not a prediction.
        if isinstance(decision, FailureKnown) and decision.task_id is not None:
            decisions[option.result_tasks[0] if option.result_tasks else DEFAULT_OPTIONS] = decision
    return Moment(
        rows,
        run.state,
        {task_id: whole.possible_states(task_id) for task_id in case.graph.topological_order},
        decisions,
    )


def find_faults(case: Case, simulated: SimulatedRun) -> list[str]:
    """Return the wrong predictions."""
    if not simulated.ended:
        return ["the run does not end"]
    found = list(simulated.misread)
    last = simulated.moments[-1]
    for number, moment in enumerate(simulated.moments):
        for option, decision in moment.decisions.items():
            found += [f"moment {number}: {one}" for one in _is_wrong(simulated, moment, option, decision)]
        for task_id, possible_states in moment.possible_states.items():
            for (name, index), row in last.rows.items():
                if name != task_id or row.state not in ENDS or _is_replaced(moment, last, (name, index)):
                    continue
                if not _possible(possible_states, index) & ENDS[row.state]:
                    found.append(
                        f"moment {number}: {name}[{index}] cannot be {row.state}, only {dict(possible_states)}"
                    )
    return found


def _is_replaced(moment: Moment, last: Moment, instance: InstanceKey) -> bool:
    """Whether another iteration of its loop has followed (Airflow 3.4)."""
    before = moment.rows.get(instance)
    return before is not None and before.iteration != last.rows[instance].iteration


def _is_wrong(simulated: SimulatedRun, moment: Moment, option: str, decision: FailureKnown) -> list[str]:
    found: list[str] = []
    if not simulated.may_fail(option):
        found.append(f"{option or 'the run'} does not fail: {decision}")
    assert decision.task_id is not None, "the others are left out"
    assert decision.map_index is not None, "a task is named with an index"
    root_cause = moment.rows[decision.task_id, decision.map_index]
    if root_cause.state in UNSUCCESSFUL_STATES:
        end = simulated.moments[-1].rows.get((decision.task_id, decision.map_index))
        if decision.state != root_cause.state or (root_cause.state == "failed" and end != root_cause):
            found.append(f"{option}: {decision} names {root_cause}, which ended as {end}")
    return found


def _possible(possible_states: PossibleStates, index: int) -> Ends:
    """Return how an instance can end. One that does not exist yet ends like the unexpanded task, and vice versa."""
    exact = [ends for ends, found in possible_states.items() if index in found]
    unexpanded = [ends for ends, found in possible_states.items() if -1 in found]
    possible = NONE
    for ends in exact or unexpanded or (possible_states if index == -1 else [ANY]):
        possible |= ends
    return possible


class FailureTiming(Enum):
    """When a failure was reported."""

    AT_ONCE = "at once"
    """At the first fatal moment: at the moment before, a result or a skip was still possible."""

    HOPELESS = "hopeless"
    """All simulated runs of this DAG fail."""

    LATE = "late"
    """At the moment before, all simulated runs already fail."""


def measure_failure_timing(case: Case, field: SchedulerDatabase, simulated: SimulatedRun, option: str) -> FailureTiming:
    """Return when a failure was reported, compared with the first fatal moment.

    The same run is simulated again up to the moment before the report, then with successes only. If that fails too
    (because of a rule like `one_failed`), it is simulated with one task that fails or skips itself, and at random. If
    any of these runs has a result, or a skip, the failure was not certain before the report. Otherwise the report was
    late, or a possible run was not tried.
    """
    reported_at = simulated.first_reported_at(option)
    before = (len(simulated.moments) if reported_at is None else reported_at) - 1
    if before < 0 or _may_not_fail(case, field, simulated, option, before):
        return FailureTiming.AT_ONCE
    return (
        FailureTiming.LATE
        if before > 0 and _may_not_fail(case, field, simulated, option, 0)
        else FailureTiming.HOPELESS
    )


def _may_not_fail(case: Case, field: SchedulerDatabase, simulated: SimulatedRun, option: str, until: int) -> bool:
    # A behaviour that only concerns a task that has ended gives the run that it gives without this task.
    open_tasks = [task_id for task_id in case.graph.tasks if not _has_ended(case, simulated.moments[until], task_id)]
    others = [
        *(WorkerBehaviour(failing=task_id) for task_id in open_tasks),
        WorkerBehaviour(0.95),
        *(WorkerBehaviour(0.95, skipping=task_id) for task_id in open_tasks),
        *(WorkerBehaviour(eager, 0.3, 0.3, 0.0, decide=case.branching) for eager in (0.2, 0.4, 0.6, 0.8)),
    ]
    return not all(simulate(case, field, until=until, then=then).fails(option) for then in (WorkerBehaviour(), *others))


def _has_ended(case: Case, moment: Moment, task_id: str) -> bool:
    """Whether no instance of a task can run any more."""
    if case.graph.loop_of(task_id) is not None:
        return False
    return all(row.state in ENDS for (name, _), row in moment.rows.items() if name == task_id)


def failed_options(case: Case, simulated: SimulatedRun) -> list[str]:
    """Return the watch options that fail, except for tasks that failed by themselves."""
    options = [*case.graph.tasks, *([DEFAULT_OPTIONS] if case.graph.only_leaf is None else [])]
    return [one for one in options if simulated.fails(one) and not _fails_by_itself(simulated, one)]


def _fails_by_itself(simulated: SimulatedRun, option: str) -> bool:
    return any(name == option and row.state == "failed" for (name, _), row in simulated.moments[-1].rows.items())


def find_kinds(case: Case, simulated: SimulatedRun) -> list[str]:
    """Return the figures of the kinds that a case contains."""
    rows = [row for moment in simulated.moments for row in moment.rows.values()]
    tasks = case.graph.tasks.values()
    found = {
        "fail_fast": case.graph.fail_fast and any(row.state == "failed" for row in rows),
        "branching": any(task.can_skip_downstream for task in tasks),
        "mapped task": any(task.is_mapped for task in tasks),
        "mapped group": any(case.graph.mapped_group_ids(task.task_id) for task in tasks),
        "setup": any(task.is_setup for task in tasks),
        "teardown": any(task.is_teardown for task in tasks),
        "retried": any(row.state == "up_for_retry" for row in rows),
        "skipped": any(row.state == "skipped" for row in rows),
        "mapped over nothing": any(row.state == "skipped" and not row.dated for row in rows),
        "loop": any(case.graph.loop_of(task_id) is not None for task_id in case.graph.tasks),
        "another iteration": any(row.iteration for row in rows),
    }
    return [prediction_kind(name) for name, is_found in found.items() if is_found and name in PREDICTION_KINDS]
