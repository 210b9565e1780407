"""Compares what the server sends of random runs with what Airflow's own scheduler and API do in them.

There are two kinds of cases, half of each:

* predictions: nothing intervenes, and each prediction is compared with how the run ends (`outcome_simulation`);
* histories: people and the clock intervene, and after each transaction a client that watches, one that joins, and one
  that resumes are compared with each other and with the outcome rules (`outcome_histories`, `outcome_oracle`).

As a script: `python -m support.outcome_check --cases 20000 [--seed SEED] [--jobs 2] [--kind histories]`, and `--replay
SEED/NUMBER` to see one case. Its last line is JSON: `wrong` counts the cases in which anything was wrong, `early` is
the share of failures that were reported at the first fatal moment, and `misses` counts those reported later in graphs
without branching (`outcome_simulation.measure_failure_timing`).

The database is SQLite in memory. The code under comparison is Airflow's Python; its SQL is plain selects,
updates and counts within one transaction. With `--url` the predictions run on PostgreSQL: they give the same
figures, moment by moment, and take longer. The triggers of histories are SQLite's. SIGINT and SIGTERM end a check with
the figures of what was checked, and with exit code 1.
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
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from support.outcome_clock import CLOCK
from support.outcome_kinds import PREFIX, count_kinds, find_missing_kinds

if TYPE_CHECKING:
    from support.outcome_scheduler import SchedulerDatabase

KINDS = ("predictions", "histories")

SAMPLED = 20
"""One of this number of failures is checked for its timing, which needs many simulations."""

CHUNK = 25
"""Cases that a process simulates before it reports."""


PROGRESS = 500
"""Cases after which a check reports how far it is."""


class CheckReport(NamedTuple):
    """Figures and remarks of some cases."""

    figures: Counter[str]
    remarks: list[str]
    """One line for each wrong or late prediction."""


def prepare(home: str, url: str) -> None:
    """Configure this process for Airflow, which reads its configuration while it is imported."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(
        AIRFLOW_HOME=home,
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=url,
        AIRFLOW__LOGGING__LOGGING_LEVEL="CRITICAL",
    )
    from airflow._shared.timezones import timezone  # noqa: PLC0415

    # Before Airflow's tables are defined, whose columns have it as their default.
    timezone.utcnow = CLOCK
    import airflow.models  # noqa: F401, PLC0415

    logging.disable(logging.CRITICAL)
    gc.disable()


def _end_with_parent() -> None:
    """Exit with the parent: otherwise this pool process would continue with the queue."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_database: SchedulerDatabase | None = None


def scheduler_database() -> SchedulerDatabase:
    """Return the database of this process, with Airflow's schema."""
    global _database  # noqa: PLW0603 # a process of a pool has no other place
    if _database is None:
        _database = _create_database()
        # What is imported stays: a collection after each chunk need not look at it again.
        gc.collect()
        gc.freeze()
    return _database


def _create_database() -> SchedulerDatabase:
    from airflow.models import import_all_models  # noqa: PLC0415
    from airflow.models.base import Base  # noqa: PLC0415
    from airflow.utils.orm_event_handlers import setup_event_handlers  # noqa: PLC0415
    from sqlalchemy import create_engine, text  # noqa: PLC0415
    from sqlalchemy.orm import Session  # noqa: PLC0415
    from sqlalchemy.pool import StaticPool  # noqa: PLC0415

    from support.outcome_scheduler import SchedulerDatabase  # noqa: PLC0415
    from support.outcome_tables import TRIGGERS  # noqa: PLC0415

    import_all_models()
    url = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    engine = create_engine(url, poolclass=StaticPool)
    if url.startswith("sqlite"):
        setup_event_handlers(engine)
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            for statement in TRIGGERS:
                connection.execute(text(statement))
    return SchedulerDatabase(Session(engine))


def check(seed: str, kinds: Sequence[str], numbers: range) -> CheckReport:
    """Run some cases of a seed. The number of a case decides its kind."""
    figures: Counter[str] = Counter()
    remarks: list[str] = []
    for number in numbers:
        kind = kinds[number % len(kinds)]
        checks = {"predictions": _check_predictions, "histories": _check_history}
        checks[kind](f"{seed}/{number}", figures, remarks)
    gc.collect()
    return CheckReport(figures, remarks)


def _check_history(seed: str, figures: Counter[str], remarks: list[str]) -> None:
    from support.outcome_cases import HistoryCase  # noqa: PLC0415
    from support.outcome_histories import play_history  # noqa: PLC0415

    history = play_history(HistoryCase(seed), scheduler_database())
    figures.update(cases=1, histories=1)
    figures.update(
        {name if name.startswith(PREFIX) else f"history {name}": count for name, count in history.figures.items()}
    )
    if history.faults:
        figures["wrong"] += 1
        remarks.append(f"wrong {seed}: {history.faults[0]}")


def _check_predictions(seed: str, figures: Counter[str], remarks: list[str]) -> None:
    from support.outcome_simulation import (  # noqa: PLC0415
        Case,
        FailureTiming,
        failed_options,
        find_faults,
        find_kinds,
        measure_failure_timing,
        simulate,
    )

    case = Case(seed)
    simulated = simulate(case, scheduler_database())
    figures.update(find_kinds(case, simulated))
    figures["looped"] += any(case.graph.loop_of(task_id) is not None for task_id in case.graph.tasks)
    figures.update(
        cases=1, plain=not case.branching, moments=len(simulated.moments), instances=len(simulated.moments[-1].rows)
    )
    if wrong := find_faults(case, simulated):
        figures["wrong"] += 1
        remarks.append(f"wrong {seed}: {wrong[0]}")
    failed = failed_options(case, simulated)
    figures["failed"] += len(failed)
    rng = random.Random(f"{seed}/question")
    if failed and rng.randrange(SAMPLED) == 0:
        option = rng.choice(failed)
        timing = measure_failure_timing(case, scheduler_database(), simulated, option)
        figures[timing.value] += 1
        if timing is not FailureTiming.AT_ONCE:
            kind = "" if case.branching else " without branching"
            remarks.append(f"{timing.value} {seed}{kind}: {option or 'the run'}")
        if not case.branching:
            figures[f"plain {timing.value}"] += 1


def replay_history(seed: str) -> None:
    """Print a history, transaction by transaction."""
    from support.outcome_cases import HistoryCase  # noqa: PLC0415
    from support.outcome_histories import play_history  # noqa: PLC0415

    case = HistoryCase(seed)
    lines = [json.dumps(json.loads(version.text)["dag"]["tasks"]) for version in case.versions]
    history = play_history(case, scheduler_database(), lines)
    for line in [*lines, *history.faults]:
        sys.stdout.write(f"{line}\n")


def replay(seed: str) -> None:
    """Print a case of predictions, moment by moment."""
    from support.outcome_simulation import Case, find_faults, simulate  # noqa: PLC0415

    case = Case(seed)
    write = sys.stdout.write
    write(f"{case.behaviour} branching={case.branching} fail_fast={case.graph.fail_fast}\n")
    for task in case.graph.tasks.values():
        groups, values = case.graph.mapped_group_ids(task.task_id), sorted(case.graph.expansion_sources(task.task_id))
        kinds = [
            name for name in ("is_setup", "is_teardown", "is_mapped", "can_skip_downstream") if getattr(task, name)
        ]
        write(f"{task.task_id} {task.trigger_rule} {kinds} {groups} {values} -> {sorted(task.downstream_task_ids)}\n")
    simulated = simulate(case, scheduler_database())
    before: dict[Any, Any] = {}
    for number, moment in enumerate(simulated.moments):
        changed = {f"{task}[{index}]": row.state for (task, index), row in moment.rows.items() - before.items()}
        before = dict(moment.rows)
        decisions = {option: tuple(decision)[:1] + tuple(decision)[2:] for option, decision in moment.decisions.items()}
        write(f"{number} {moment.state} {changed}\n    {decisions}\n")
    for fault in find_faults(case, simulated):
        write(f"{fault}\n")


def report_figures(figures: Counter[str], kinds: Sequence[str]) -> dict[str, Any]:
    """Return the figures that are printed."""
    reported = figures["at once"] + figures["late"]
    return {
        "cases": figures["cases"],
        "wrong": figures["wrong"],
        "early": round(figures["at once"] / reported, 4) if reported else None,
        "misses": figures["plain late"],
        "without_branching": figures["plain"],
        "with_loops": figures["looped"],
        "sampled_without_branching": figures["plain at once"] + figures["plain late"],
        "failed_answers": figures["failed"],
        "sampled": reported + figures["hopeless"],
        "late": figures["late"],
        "hopeless": figures["hopeless"],
        "histories": figures["histories"],
        "interventions": {
            name: figures[f"history {name}"] for name in ("expire", "mark", "clear", "delete", "deploy", "late")
        },
        "transactions": figures["history moments"],
        "moments": figures["moments"],
        "instances": figures["instances"],
        "kinds": count_kinds(figures, kinds),
    }


@contextmanager
def home() -> Iterator[str]:
    """Make a directory for Airflow; it is removed at the end."""
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
    parser.add_argument("--kind", choices=KINDS, help="both by default")
    parser.add_argument("--replay", metavar="SEED/NUMBER")
    options = parser.parse_args()
    is_sqlite = options.url.startswith("sqlite")
    kinds = (options.kind,) if options.kind else KINDS if is_sqlite else KINDS[:1]
    with home() as directory:
        if options.replay:
            prepare(directory, options.url)
            kind = kinds[int(options.replay.rpartition("/")[2]) % len(kinds)]
            (replay if kind == "predictions" else replay_history)(options.replay)
            return 0
        return _check_all(options, kinds, directory)


def _check_all(options: argparse.Namespace, kinds: Sequence[str], directory: str) -> int:
    started = time.monotonic()
    figures: Counter[str] = Counter()
    is_interrupted = False
    chunks = [range(first, min(first + CHUNK, options.cases)) for first in range(0, options.cases, CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, prepare, (directory, options.url)) as pool, _interruptible():
        # Not `map`: when it is interrupted, it cancels futures, which a pool without processes cannot end.
        pending = [pool.submit(check, options.seed, kinds, chunk) for chunk in chunks]
        try:
            for future in pending:
                report = future.result()
                figures += report.figures
                for remark in report.remarks:
                    sys.stdout.write(f"{remark}\n")
                if figures["cases"] % PROGRESS == 0:
                    sys.stdout.write(f"checked {figures['cases']} cases, {figures['wrong']} wrong\n")
                sys.stdout.flush()
        except KeyboardInterrupt:
            is_interrupted = True
            for process in multiprocessing.active_children():
                process.terminate()
    seconds = round(time.monotonic() - started, 1)
    missing = find_missing_kinds(figures, kinds)
    for kind in missing:
        sys.stdout.write(f"missing {kind}\n")
    sys.stdout.write(json.dumps({**report_figures(figures, kinds), "seconds": seconds, "seed": options.seed}) + "\n")
    return 1 if figures["wrong"] or missing or not figures["cases"] or is_interrupted else 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Have SIGTERM end the check as SIGINT does: with the figures of what was checked."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    yield


if __name__ == "__main__":
    raise SystemExit(main())
