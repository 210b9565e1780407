"""The cases of histories: DAG versions, and what clients ask of the run."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import NamedTuple

from airflow.serialization.serialized_objects import DagSerialization

from stream_server.domain.graph import Graph
from stream_server.domain.outcome import WatchOptions
from support.outcome_dags import HistoryDagMaker
from support.outcome_oracle import Question


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
