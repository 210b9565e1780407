"""What we predict, held against what Airflow's own scheduler makes of the same runs.

As a script: `python -m support.outcome_check --cases 20000 [--seed SEED] [--jobs 2]`, and `--replay SEED/NUMBER` to see
one case. Its last line is JSON: `wrong` counts the cases in which we said what did not come true, `early` is the share
of failures that we told at the first fatal moment, and `misses` counts those told later in graphs without branching
(`outcome_play.when_known`).

The database is SQLite in memory. The code under comparison is Airflow's Python; of SQL it asks for plain selects,
updates and counts within one transaction. With `--url` the same cases are played on PostgreSQL: they come to the same
figures, moment by moment, and take longer.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import random
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from support.outcome_scheduler import Field

SAMPLED = 20
"""Of so many failures, one is looked at for whether we told it at the first fatal moment: that takes many lives."""

CHUNK = 25
"""Cases that a process plays before it reports."""


class Report(NamedTuple):
    """What came of some cases."""

    figures: Counter[str]
    remarks: list[str]
    """One line each on what is wrong or late."""


def prepare(home: str, url: str) -> None:
    """Make this process one in which Airflow can be imported. It reads its configuration while it is imported."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(
        AIRFLOW_HOME=home,
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=url,
        AIRFLOW__LOGGING__LOGGING_LEVEL="CRITICAL",
    )
    import airflow.models  # noqa: F401, PLC0415

    logging.disable(logging.CRITICAL)
    gc.disable()


def _end_with_parent() -> None:
    """End this process of a pool when its parent has been killed: it would go on with what is in the queue."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_field: Field | None = None


def field() -> Field:
    """Return the database of this process, with Airflow's schema."""
    global _field  # noqa: PLW0603 # a process of a pool has no other place
    if _field is None:
        _field = _new_field()
    return _field


def _new_field() -> Field:
    from airflow.models import import_all_models  # noqa: PLC0415
    from airflow.models.base import Base  # noqa: PLC0415
    from airflow.utils.orm_event_handlers import setup_event_handlers  # noqa: PLC0415
    from sqlalchemy import create_engine  # noqa: PLC0415
    from sqlalchemy.orm import Session  # noqa: PLC0415
    from sqlalchemy.pool import StaticPool  # noqa: PLC0415

    from support.outcome_scheduler import Field  # noqa: PLC0415

    import_all_models()
    url = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    engine = create_engine(url, poolclass=StaticPool)
    if url.startswith("sqlite"):
        setup_event_handlers(engine)
        Base.metadata.create_all(engine)
    return Field(Session(engine))


def check(seed: str, numbers: range) -> Report:
    """Play some cases of a seed."""
    figures: Counter[str] = Counter()
    remarks: list[str] = []
    for number in numbers:
        _check_case(f"{seed}/{number}", figures, remarks)
    gc.collect()
    return Report(figures, remarks)


def _check_case(seed: str, figures: Counter[str], remarks: list[str]) -> None:
    from support.outcome_simulation import Case, Known, failed_questions, faults, live, when_known  # noqa: PLC0415

    case = Case(seed)
    life = live(case, field())
    figures.update(cases=1, plain=not case.branching, moments=len(life.moments), instances=len(life.moments[-1].rows))
    if wrong := faults(case, life):
        figures["wrong"] += 1
        remarks.append(f"wrong {seed}: {wrong[0]}")
    failed = failed_questions(case, life)
    figures["failed"] += len(failed)
    rng = random.Random(f"{seed}/question")
    if failed and rng.randrange(SAMPLED) == 0:
        question = rng.choice(failed)
        known = when_known(case, field(), life, question)
        figures[known.value] += 1
        if known is not Known.AT_ONCE:
            kind = "" if case.branching else " without branching"
            remarks.append(f"{known.value} {seed}{kind}: {question or 'the run'}")
        if not case.branching:
            figures[f"plain {known.value}"] += 1


def replay(seed: str) -> None:
    """Tell one case moment by moment."""
    from support.outcome_simulation import Case, faults, live  # noqa: PLC0415

    case = Case(seed)
    say = sys.stdout.write
    say(f"{case.habits} branching={case.branching} fail_fast={case.graph.fail_fast}\n")
    for task in case.graph.tasks.values():
        groups, values = case.graph.mapped_group_ids(task.task_id), sorted(case.graph.expansion_sources(task.task_id))
        kinds = [
            name for name in ("is_setup", "is_teardown", "is_mapped", "can_skip_downstream") if getattr(task, name)
        ]
        say(f"{task.task_id} {task.trigger_rule} {kinds} {groups} {values} -> {sorted(task.downstream_task_ids)}\n")
    life = live(case, field())
    before: dict[Any, Any] = {}
    for number, moment in enumerate(life.moments):
        changed = {f"{task}[{index}]": row.state for (task, index), row in moment.rows.items() - before.items()}
        before = dict(moment.rows)
        told = {question: tuple(verdict)[:1] + tuple(verdict)[2:] for question, verdict in moment.verdicts.items()}
        say(f"{number} {moment.state} {changed}\n    {told}\n")
    for fault in faults(case, life):
        say(f"{fault}\n")


def summary(figures: Counter[str]) -> dict[str, Any]:
    """Return the figures that are told."""
    told = figures["at once"] + figures["late"]
    return {
        "cases": figures["cases"],
        "wrong": figures["wrong"],
        "early": round(figures["at once"] / told, 4) if told else None,
        "misses": figures["plain late"],
        "without_branching": figures["plain"],
        "sampled_without_branching": figures["plain at once"] + figures["plain late"],
        "failed_answers": figures["failed"],
        "sampled": told + figures["hopeless"],
        "late": figures["late"],
        "hopeless": figures["hopeless"],
        "moments": figures["moments"],
        "instances": figures["instances"],
    }


@contextmanager
def home() -> Iterator[str]:
    """A directory for Airflow, removed at the end."""
    path = tempfile.mkdtemp(prefix="check-outcome-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--url", default="sqlite://", help="SQLAlchemy URL of a database with Airflow's schema")
    parser.add_argument("--replay", metavar="SEED/NUMBER")
    options = parser.parse_args()
    with home() as directory:
        if options.replay:
            prepare(directory, options.url)
            replay(options.replay)
            return 0
        return _check_all(options, directory)


def _check_all(options: argparse.Namespace, directory: str) -> int:
    begun = time.monotonic()
    figures: Counter[str] = Counter()
    chunks = [range(first, min(first + CHUNK, options.cases)) for first in range(0, options.cases, CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, prepare, (directory, options.url)) as pool:
        for report in pool.map(partial(check, options.seed), chunks):
            figures += report.figures
            for remark in report.remarks:
                sys.stdout.write(f"{remark}\n")
            sys.stdout.flush()
    seconds = round(time.monotonic() - begun, 1)
    sys.stdout.write(json.dumps({**summary(figures), "seconds": seconds, "seed": options.seed}) + "\n")
    return 1 if figures["wrong"] or not figures["cases"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
