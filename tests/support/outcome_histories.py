"""One random history of a run with interventions, and what its clients know after each transaction."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from airflow.serialization.serialized_objects import DagSerialization

from stream_server.domain.graph import Graph
from stream_server.domain.outcome import WatchOptions
from support.outcome_clients import Client, ClientEnd, ClientOutcome, Knowledge, Server, find_differences
from support.outcome_clock import CLOCK, PAUSES
from support.outcome_dags import HistoryDagMaker
from support.outcome_interventions import REFUSALS, Intervention, WatchedAirflowRun, choose_intervention
from support.outcome_oracle import Oracle, Outcome, Question, pushes
from support.outcome_scheduler import FINAL, InstanceKey, SchedulerDatabase
from support.outcome_simulation import choose_skipped
from support.outcome_tables import InstanceRow, RunTables

MOMENTS = 60
"""A history has at most this many transactions."""

FAULTS = 3
"""After this many faults a history stops."""

_SCHEDULEABLE = frozenset({None, "up_for_retry", "up_for_reschedule"})
_WORK = frozenset({"scheduled", "queued", "running", "restarting"})


class DagVersionText(NamedTuple):
    """A DAG version as the case deploys it."""

    text: str
    sources: frozenset[str]
    marked: frozenset[str]
    """Tasks with Airflow 3.3's own mark."""


@dataclass
class HistoryCase:
    """DAG versions, questions and behaviour; everything follows from the seed."""

    seed: str
    versions: list[DagVersionText] = field(init=False)
    questions: list[tuple[WatchOptions, Question]] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(f"{self.seed}/dag")
        shape = rng.random()
        first, second = HistoryDagMaker(random.Random(shape)), HistoryDagMaker(random.Random(shape), extended=True)
        versions = [_make_version(first), _make_version(second)]
        rng.shuffle(versions)
        if rng.random() < 0.25:
            versions[1] = _make_version(HistoryDagMaker(random.Random(rng.random())))
        self.versions = versions
        tasks = sorted(task["__var"]["task_id"] for task in json.loads(versions[0].text)["dag"]["tasks"])
        marked = versions[0].marked
        # What an earlier run with successes only, or with some skips, has shown.
        earlier = {task: task in marked for task in tasks if rng.random() < 0.9} if rng.random() < 0.5 else None
        names: list[tuple[str, ...]] = [(), (rng.choice(tasks),)]
        if len(tasks) > 1:
            names.append(tuple(rng.sample(tasks, rng.randint(2, min(3, len(tasks))))))
        self.earlier_marks = earlier
        self.questions = [
            (
                WatchOptions(result_tasks=named, until="run", confirm=rng.choice(("push", "push", "success"))),
                Question(named, earlier),
            )
            for named in names
        ]


def _make_version(maker: HistoryDagMaker) -> DagVersionText:
    text = json.dumps(DagSerialization.to_dict(maker.make()))
    graph = Graph.parse(text)
    sources = frozenset[str]().union(*map(graph.expansion_sources, graph.tasks))
    return DagVersionText(text, sources, frozenset(maker.natively_marked))


class History:
    """A run of a case, and its clients.

    Args:
        case: The case.
        database: Where the run is written.
        log: Receives a line for each transaction and each frame; `None` without a replay.
    """

    def __init__(self, case: HistoryCase, database: SchedulerDatabase, log: list[str] | None = None) -> None:
        self.faults: list[str] = []
        self.figures: Counter[str] = Counter()
        self._case = case
        self._log = log
        self._rng = random.Random(f"{case.seed}/life")
        self._pauses = random.Random(f"{case.seed}/pauses")
        self._versions = list(case.versions)
        first = self._versions.pop(0)
        self._run = WatchedAirflowRun(
            database, first.text, first.sources, random.Random(f"{case.seed}/deps"), first.marked
        )
        self._tables = RunTables(self._run.session, case.earlier_marks)
        self._server = Server(self._tables)
        self._clients: list[Client | None] = [None] * len(case.questions)
        self._claims: list[tuple[int, ClientOutcome] | None] = [None] * len(case.questions)
        """Outcomes that were sent before the tables show them, and when. They must not turn out wrong."""

        self._is_interrupted = False
        self._is_deployed = False
        """Whether the scheduler has yet to take up another version. Of waiting tasks it keeps the old one."""

        self._behaviour = self._rng.choice(((0.05, 0.05), (0.2, 0.1), (0.4, 0.2)))
        """Shares of tasks that fail and that skip themselves."""

        self._interventions = self._rng.choice((0, 1, 1, 2, 3))
        self._values = 0
        self._moment = 0

    async def play(self) -> None:
        """Run the history."""
        try:
            await self._check(Server(self._tables))
            pending: list[Any] = []
            idle = False
            while self._moment < MOMENTS and len(self.faults) < FAULTS:
                before = self._tables.current
                CLOCK.advance(self._pauses.choice(PAUSES))
                name = self._act(idle=idle)
                if name is None:
                    break
                batch = self._tables.commit()
                is_taken_up = name == "loop" and before.run.state == "running" and self._is_deployed
                if self._tables.current.version != before.version or is_taken_up:
                    self._is_deployed = False
                    # The run has taken up another version, which no prediction foresees.
                    self._claims = [None] * len(self._claims)
                idle = self._tables.current == before and name == "loop"
                if not batch and self._tables.current == before and name == "loop":
                    continue
                self._moment += 1
                self._note(f"{self._moment} {name}: {self._describe(before.instances)}")
                pending += batch
                if self._rng.random() < 0.15:
                    continue
                await self._server.dispatch(pending)
                pending = []
                await self._check(Server(self._tables))
        finally:
            await self._server.close()
            self._run.close()
        self.figures["moments"] += self._moment

    # What happens.

    def _act(self, *, idle: bool) -> str | None:
        """Make one transaction, and return its name; `None` if nothing more happens."""
        rng, instances = self._rng, self._tables.current.instances
        state = self._tables.current.run.state
        has_ended = state in FINAL
        work = sorted(key for key, row in instances.items() if row.state in _WORK)
        share = 0.5 if has_ended or (idle and not work) else 0.1
        if self._interventions and self._moment and rng.random() < share:
            self._interventions -= 1
            chosen = choose_intervention(rng, instances, state, self._deployment if self._versions else None)
            if chosen is not None:
                name, intervene = chosen
                self._claims = [None] * len(self._claims)
                self.figures[name.split()[0]] += 1
                # Tasks that are marked as skipped look like those that the mark of a run skips.
                self._is_interrupted |= name.startswith(("expire", "mark run", "delete")) or (
                    name.startswith("mark") and (has_ended or " skipped " in name)
                )
                with suppress(*REFUSALS):
                    intervene(self._run)
                return name
        if has_ended and (not work or not self._interventions or rng.random() < 0.3):
            late = [key for key, row in instances.items() if row.state in {"failed", "skipped"}]
            if self._interventions and late and rng.random() < 0.5:
                # A worker that was stopped still pushes its value: the Execution API does not check the state.
                return self._push_late(rng.choice(sorted(late)))
            return None if not self._interventions else "nothing"
        if work and (idle or has_ended or rng.random() < 0.6):
            return self._work(rng.choice(work), instances)
        if idle:
            return None
        self._run.schedule()
        return "loop"

    def _deployment(self) -> Intervention:
        version = self._versions.pop(0)
        self._is_deployed = True
        return lambda run: run.deploy(version.text, version.sources, version.marked)

    def _push_late(self, key: InstanceKey) -> str:
        self._run.push(key, self._value(key))
        self.figures["late"] += 1
        return f"late push of {key}"

    def _work(self, key: InstanceKey, instances: Mapping[InstanceKey, InstanceRow]) -> str:  # noqa: PLR0911
        rng, run = self._rng, self._run
        row = instances[key]
        if row.state == "restarting":
            run.stop(key)
            return f"stop {key}"
        if row.state != "running":
            run.start(key)
            return f"start {key}"
        if run.delete_stale_value(key) and row.value_at is not None:
            return f"delete stale value of {key}"
        fail, skip = self._behaviour
        draw = rng.random()
        if draw < 0.08:
            run.retry(key)
            return f"retry {key}"
        if (draw := draw - 0.08) < fail:
            run.fail(key)
            return f"fail {key}"
        if draw - fail < skip:
            run.skip(key)
            return f"skip {key}"
        task: Any = run.dag.task_dict.get(key[0])
        if task is not None and task.inherits_from_skipmixin:
            run.decide(key, choose_skipped(run, task, rng))
            return f"decide {key}"
        if row.value_at is None and (task is None or pushes(task)) and (key[0] in run.sources or rng.random() < 0.9):
            run.push(key, self._value(key))
            if rng.random() < 0.5:
                return f"push of {key}"
        run.finish(key)
        return f"succeed {key}"

    def _value(self, key: InstanceKey) -> object:
        if key[0] in self._run.sources:
            return list(range(self._rng.choice((0, 1, 2, 2, 3))))
        self._values += 1
        return f"value {self._values}"

    # What clients know.

    async def _check(self, joined: Server) -> None:
        tables = self._tables.current
        oracle = Oracle(self._run.dag_of(tables.version), tables, self._run.session)
        try:
            for number, (options, question) in enumerate(self._case.questions):
                current = replace(question, is_interrupted=self._is_interrupted)
                await self._check_question(number, options, current, joined, oracle)
        finally:
            await joined.close()

    async def _check_question(
        self, number: int, options: WatchOptions, question: Question, joined: Server, oracle: Oracle
    ) -> None:
        name = f"moment {self._moment}, {options.result_tasks or 'default'}, confirm={options.confirm}"
        late = await joined.subscribe(options)
        if late is None:
            return
        live = self._clients[number]
        if live is None or live.has_ended:
            self._clients[number] = live = await self._server.subscribe(options)
            if live is None:
                self.faults.append(f"{name}: the watching server does not know the task")
                return
        else:
            live.receive(keep=True)
        self._note(f"    {name}: {live.frames} {live.knowledge.outcome} {live.knowledge.end}")
        live.frames.clear()
        others = [("joining", late)]
        if live.checkpoints:
            resumed = await joined.subscribe(options, self._rng.choice(live.checkpoints))
            if resumed is not None:
                others.append(("resuming", resumed))
        self.faults += [f"{name}: {one}" for one in find_differences(live.knowledge, others, self._tables.current)]
        if set(late.knowledge.result_tasks) != set(oracle.result_tasks(question)):
            self.faults.append(f"{name}: the snapshot names {late.knowledge.result_tasks} as result tasks")
        expected = oracle.judge(question)
        self._note(f"        expected {expected}")
        self.faults += [
            f"{name}: {one}" for one in self._judge(number, options, late.knowledge, question, expected, oracle)
        ]
        if live.has_ended:
            self._clients[number] = None

    def _judge(
        self,
        number: int,
        options: WatchOptions,
        known: Knowledge,
        question: Question,
        expected: list[Outcome],
        oracle: Oracle,
    ) -> Iterator[str]:
        """Yield what is wrong with what a client knows, compared with what is right."""
        state, claim = self._tables.current.run.state, self._claims[number]
        sent, has_ended = known.outcome, state in FINAL
        is_open = not has_ended and (oracle.shows_native_marks(question) or options.confirm == "success")
        kinds = {one.kind for one in expected}
        # A result is early if result tasks that wait are certain to be skipped, or if all native marks are known.
        may_be_early = ("pending" in kinds or is_open) and (
            sent is None or sent.kind == "failure" or sent.results == oracle.values(question)
        )
        self.figures[f"{'/'.join(sorted(kinds))}"] += 1
        if sent is not None and sent.failure is not None and (wrong := self._check_cause(sent)):
            yield wrong
        if claim is not None and not self._confirms(claim[1], expected):
            yield f"at moment {claim[0]} it got {claim[1]}, but now it is {expected}"
            self._claims[number] = None
        if any(self._is_outcome(sent, one) for one in expected):
            if has_ended and not any(_is_end(known.end, state, one) for one in expected):
                yield f"it ends with {known.end}, but expected is {expected}"
            if claim is not None and sent is None:
                yield f"it got {claim[1]} at moment {claim[0]}, which was revoked"
        elif sent is None:
            if not is_open:
                yield f"it got no outcome, but expected is {expected}"
        elif has_ended or not may_be_early:
            yield f"it got {sent}, but expected is {expected}"
        # A value that is pushed may be retracted by its own task.
        must_hold = sent is not None and (sent.kind == "failure" or oracle.is_settled(question))
        if claim is None and sent is not None and must_hold and "pending" in kinds:
            self.figures["predicted"] += 1
            self._claims[number] = self._moment, sent

    @staticmethod
    def _is_outcome(sent: ClientOutcome | None, expected: Outcome) -> bool:
        if sent is None:
            return expected.kind in {"none", "pending"}
        if sent.kind != expected.kind:
            return False
        if sent.kind == "failure":
            return True
        given = sent.map_indexes or {}
        for task_id, indexes in expected.map_indexes.items():
            is_complete = indexes == list(range(len(indexes)))
            if given.get(task_id, indexes if is_complete else None) != indexes:
                return False
        return sent.results == expected.results and given.keys() <= expected.map_indexes.keys()

    def _confirms(self, claim: ClientOutcome, expected: list[Outcome]) -> bool:
        """Whether an outcome that was sent early can still be right."""
        return any(one.kind == "pending" or self._is_outcome(claim, one) for one in expected)

    def _check_cause(self, sent: ClientOutcome) -> str | None:
        failure = sent.failure
        assert failure is not None, "checked by the caller"
        if failure.reason == "task_skipped":
            return f"a skip is no failure: {failure}"
        if failure.task_id is None:
            return None
        row = self._tables.current.instances.get((failure.task_id, failure.map_index))  # type: ignore[arg-type]
        if row is None or row.try_number != failure.try_number:
            return f"{failure} names {row}"
        # Without a failure upstream it names the task itself, with the state that Airflow is about to write.
        is_about_to_fail = failure.predicted and failure.state == "upstream_failed" and row.state in _SCHEDULEABLE
        return None if row.state == failure.state or is_about_to_fail else f"{failure} names {row}"

    def _describe(self, before: Mapping[InstanceKey, InstanceRow]) -> str:
        now = self._tables.current
        changes = [
            f"{key[0]}[{key[1]}]={row.state}/{row.try_number}"
            for key, row in now.instances.items()
            if before.get(key) != row
        ]
        gone = [f"{key[0]}[{key[1]}] gone" for key in before if key not in now.instances]
        return f"{now.run.state} {' '.join([*changes, *gone])}"

    def _note(self, line: str) -> None:
        if self._log is not None:
            self._log.append(line)


def _is_end(end: ClientEnd | None, state: str, expected: Outcome) -> bool:
    if end is None or (end.state, end.outcome) != (state, expected.kind):
        return False
    if expected.kind != "none":
        return end.reason is None
    return end.reason in expected.reasons and (end.reason != "task_skipped" or end.task_id == expected.task_id)


_loop: asyncio.AbstractEventLoop | None = None


def play_history(case: HistoryCase, database: SchedulerDatabase, log: list[str] | None = None) -> History:
    """Play a history in the event loop of this process."""
    global _loop  # noqa: PLW0603 # a process of a pool has no other place
    if _loop is None:
        _loop = asyncio.new_event_loop()

    async def play() -> History:
        CLOCK.restart()
        history = History(case, database, log)
        await history.play()
        return history

    return _loop.run_until_complete(play())
