"""One random history of a run with interventions, and what its clients know after each transaction."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stream_server.domain.outcome import WatchOptions
from support.outcome_airflow import HAS_ROW_PER_TRY
from support.outcome_cases import HistoryCase
from support.outcome_clients import Client, ClientEnd, ClientOutcome, Knowledge, Server, find_differences
from support.outcome_clock import CLOCK, PAUSES
from support.outcome_interventions import REFUSALS, Change, WatchedAirflowRun, choose_intervention
from support.outcome_kinds import find_shapes, history_kind
from support.outcome_oracle import Oracle, Outcome, Question, is_marked, pushes
from support.outcome_scheduler import FINAL, InstanceKey, SchedulerDatabase
from support.outcome_simulation import choose_skipped
from support.outcome_tables import InstanceRow, RunTables, Tables

MOMENTS = 60
"""A history has at most this many transactions."""

FAULTS = 3
"""After this many faults a history stops."""

_SCHEDULEABLE = frozenset({None, "up_for_retry", "up_for_reschedule"})
_WORK = frozenset({"scheduled", "queued", "running", "restarting"})


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
        self._is_expired = False
        """Whether the timeout of the run has passed, which the scheduler has yet to notice."""

        self._values = 0
        self._moment = 0
        self._count(*find_shapes(self._run.dag), *(("native mark",) if first.marked else ()))
        if any(is_marked(task) for task in self._run.dag.tasks):
            self._count("author's mark")

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
                    self._count("version taken up during the run")
                    self._claims = [None] * len(self._claims)
                idle = self._tables.current == before and name == "loop"
                if not batch and self._tables.current == before and name == "loop":
                    continue
                self._count_changes(name, before)
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
            if name := self._intervene(instances, state):
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

    def _intervene(self, instances: Mapping[InstanceKey, InstanceRow], state: str) -> str | None:
        """Do something that people or the clock do, and return its name; `None` if nothing can be done."""
        deployment = self._deployment if self._versions else None
        chosen = choose_intervention(self._rng, instances, state, deployment)
        if chosen is None:
            return None
        name = chosen.name
        self._claims = [None] * len(self._claims)
        self.figures[name.split()[0]] += 1
        # Tasks that are marked as skipped look like those that the mark of a run skips.
        self._is_interrupted |= name.startswith(("expire", "mark run", "delete")) or (
            name.startswith("mark") and (state in FINAL or " skipped " in name)
        )
        try:
            chosen.make(self._run)
        except REFUSALS:
            return name
        self._count(*chosen.kinds)
        self._is_expired |= name == "expire"
        return name

    def _count(self, *kinds: str) -> None:
        self.figures.update(history_kind(kind) for kind in kinds)

    def _count_changes(self, name: str, before: Tables) -> None:
        """Count what is seen only in the tables."""
        now = self._tables.current
        changed = {key: row for key, row in now.instances.items() if before.instances.get(key) != row}
        if name.startswith("fail ") and any(row.state == "skipped" for row in changed.values()):
            self._count("fail_fast stop")
        if self._is_expired and name == "loop":
            self._is_expired = False
            self._count(*(("timeout",) if now.run.state == "failed" != before.run.state else ()))
        if any(row.iteration for key, row in changed.items() if key in before.instances and row.try_number == 0):
            self._count("another iteration")
        if any(row.state == "removed" for row in changed.values()):
            self._count("removed")
        if name == "loop" and now.run.state not in FINAL:
            nothing = [
                key for key, row in changed.items() if (key[1], row.state, row.end_date) == (-1, "skipped", None)
            ]
            self._count(*(("mapped over nothing",) if nothing else ()))

    def _deployment(self) -> Change:
        version = self._versions.pop(0)
        self._is_deployed = True
        return lambda run: run.deploy(version.text, version.sources, version.marked)

    def _push_late(self, key: InstanceKey) -> str:
        self._run.push(key, self._value(key))
        self.figures["late"] += 1
        self._count("late push")
        return f"late push of {key}"

    def _work(self, key: InstanceKey, instances: Mapping[InstanceKey, InstanceRow]) -> str:  # noqa: C901, PLR0911
        rng, run = self._rng, self._run
        row = instances[key]
        if row.state == "restarting":
            self._count("restarting")
            run.stop(key)
            return f"stop {key}"
        if row.state != "running":
            run.start(key)
            return f"start {key}"
        if run.delete_stale_value(key) and row.value_at is not None and not HAS_ROW_PER_TRY:
            self._count("stale value")
            return f"delete stale value of {key}"
        fail, skip = self._behaviour
        draw = rng.random()
        if draw < 0.08:
            self._count("retry", *(("retry after a pushed value",) if row.has_current_value else ()))
            run.retry(key)
            return f"retry {key}"
        if (draw := draw - 0.08) < fail:
            self._count(*(("failure after a pushed value",) if row.has_current_value else ()))
            run.fail(key)
            return f"fail {key}"
        if draw - fail < skip:
            run.skip(key)
            return f"skip {key}"
        task: Any = run.dag.task_dict.get(key[0])
        if task is not None and task.task_type == "LoopGateOperator":
            is_last = rng.random() < 0.4
            run.complete_gate(key, stops=is_last)
            return f"complete gate {key}, stops={is_last}"
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
        instance = failure.task_id, failure.map_index
        found = [row for one, index, row in self._tables.current.rows if (one, index) == instance]
        row = next((row for row in found if row.iteration == failure.iteration), None)
        if row is None or row.try_number != failure.try_number:
            return f"{failure} names {row}"
        # Without a failure upstream it names the task itself, with the state that Airflow is about to write.
        is_about_to_fail = failure.predicted and failure.state == "upstream_failed" and row.state in _SCHEDULEABLE
        return None if row.state == failure.state or is_about_to_fail else f"{failure} names {row}"

    def _describe(self, before: Mapping[InstanceKey, InstanceRow]) -> str:
        now = self._tables.current
        changes = [
            f"{key[0]}[{key[1]}]={row.state}/{row.try_number}{'' if row.iteration is None else f'@{row.iteration}'}"
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
