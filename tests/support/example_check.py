"""Runs every example DAG that the installed Airflow ships. Compares what a client knows at the end with Airflow's API.

As a script: `python -m support.example_check [--only DAG_ID…] [--jobs 4]`. Its last line is JSON: `misses` has one line
for each difference, each run that did not end, and each entry of `example_dags` that is out of date. The frames of runs
with differences are kept in the folder that `--frames` names. With `--only`, Airflow reads only the files that have the
names of the DAGs, because reading all takes longer than a few runs. `--stack` runs them on a stack that has them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.testbed import add_stack_option
from stream_server.cli.demo.airflow import ADMIN
from stream_server.cli.demo.airflow_client import AirflowRestClient
from stream_server.cli.demo.progress import ConsoleReporter
from stream_server.cli.demo.stack import DemoStack
from support.example_dags import (
    LISTED,
    NOT_RUN,
    PARTNERS,
    PLUGINS,
    REQUESTS,
    WITHOUT_DAGS,
    example_files,
    example_folders,
    files_naming,
)
from support.example_runs import ComparedRun, ExampleRuns
from support.postgres import DATA_DIR, FAST
from support.waiting import eventually

PARSE_SECONDS = 300.0
PAGE = 100
MAX_DAGS = 300

SETTINGS = {
    # Many examples have a schedule; only the runs of the check may run.
    "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "True",
    "AIRFLOW__CORE__PARALLELISM": "8",
    # They do not change, and reading them all takes a core.
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    # Speed does not matter here, and the loop of an idle scheduler takes CPU time.
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
}

ALL_EXAMPLES = {
    # Airflow adds the folders of its packages, and the plugins that some of the examples need. Without a bundle of our
    # own, it adds nothing: the examples of the demo are one.
    "AIRFLOW__CORE__LOAD_EXAMPLES": "True",
}


@contextmanager
def chosen_examples(dag_ids: Collection[str] | None) -> Iterator[Path | None]:
    """Yield a folder with copies of the files that these DAGs need; None if Airflow must read all of its folders."""
    files = files_naming(
        [*dag_ids, *(one for dag_id in dag_ids for one in PARTNERS.get(dag_id, ()))] if dag_ids else ()
    )
    # Airflow adds its plugins together with its folders.
    if not files or any(PLUGINS in path.read_text() for path in files):
        yield None
        return
    with TemporaryDirectory(prefix="example-dags-") as folder:
        copies = Path(folder).resolve()
        for path in files:
            shutil.copy(path, copies)
        yield copies


def find_dags(rest: AirflowRestClient, folders: Iterable[Path]) -> dict[str, str]:
    """Wait until Airflow has read each file. Return the file by DAG.

    Raises:
        AssertionError: A file has an import error, or is not read in time.
    """
    awaited = {str(path) for folder in folders for path in example_files(folder)}

    def read() -> dict[str, str] | None:
        errors = rest.get_import_errors()
        assert not errors, f"import errors: {errors}"
        dags: dict[str, str] = {}
        for offset in range(0, MAX_DAGS, PAGE):
            query: dict[str, Any] = {"limit": PAGE, "offset": offset, "order_by": "dag_id"}
            page = rest.request("GET", "/dags", params=query).raise_for_status().json()
            dags |= {dag["dag_id"]: dag["fileloc"] for dag in page["dags"]}
        shipped = {dag_id: path for dag_id, path in dags.items() if path in awaited}
        return shipped if set(shipped.values()) == awaited else None

    return eventually(read, PARSE_SECONDS, what="the last example file is read") or {}


def find_stale_entries(dag_ids: Collection[str], folders: Iterable[Path]) -> list[str]:
    """Return a line for each entry of the lists that names a DAG or a file that Airflow does not ship."""
    names = {path.name for folder in folders for path in folder.glob("*.py")}
    return [f"{dag_id} is listed, but Airflow has no such DAG" for dag_id in sorted(LISTED - set(dag_ids))] + [
        f"{name} is listed, but Airflow has no such file" for name in sorted(set(WITHOUT_DAGS) - names)
    ]


async def check(
    url: str,
    rest: AirflowRestClient,
    dag_ids: Iterable[str],
    requests: Mapping[str, Mapping[str, Any]],
    *,
    jobs: int,
    within: float,
) -> list[ComparedRun]:
    """Run DAGs and compare the runs.

    Args:
        url: Address of stream_server.
        rest: Airflow's REST API, as an admin.
        dag_ids: The DAGs.
        requests: Further members of the requests that trigger them, by DAG.
        jobs: Maximum of runs at a time.
        within: Seconds for each run.
    """
    runs = ExampleRuns(url, rest, within)
    unpaused = _UnpausedDags(rest)
    slots = asyncio.Semaphore(jobs)

    async def run(dag_id: str) -> ComparedRun:
        async with slots, unpaused.hold(dag_id, *PARTNERS.get(dag_id, ())):
            compared = await runs.run(dag_id, requests.get(dag_id))
        verdict = "differs" if compared.differences else f"{compared.state}, {compared.outcome}"
        sys.stdout.write(f"{dag_id}: {verdict}, {sum(compared.states.values())} instances, {compared.seconds} s\n")
        sys.stdout.flush()
        return compared

    return await asyncio.gather(*map(run, dag_ids))


class _UnpausedDags:
    """Unpauses DAGs that are paused, while a run needs them."""

    def __init__(self, rest: AirflowRestClient) -> None:
        self._rest = rest
        self._users: Counter[str] = Counter()
        self._paused: set[str] = set()
        """DAGs that this object has unpaused."""
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def hold(self, *dag_ids: str) -> AsyncIterator[None]:
        async with self._lock:
            self._users.update(dag_ids)
            paused = [dag_id for dag_id in dag_ids if await asyncio.to_thread(self._is_paused, dag_id)]
            for dag_id in paused:
                await asyncio.to_thread(self._rest.set_paused, dag_id, paused=False)
                self._paused.add(dag_id)
        try:
            yield
        finally:
            async with self._lock:
                self._users.subtract(dag_ids)
                for dag_id in self._paused.intersection(dag_ids):
                    if not self._users[dag_id]:
                        await asyncio.to_thread(self._rest.set_paused, dag_id)
                        self._paused.discard(dag_id)

    def _is_paused(self, dag_id: str) -> bool:
        dag = self._rest.get_dag(dag_id)
        assert dag is not None, f"Airflow has no DAG {dag_id}"
        return bool(dag["is_paused"])


def report_figures(runs: Collection[ComparedRun]) -> dict[str, Any]:
    """Return the figures that are printed, without `misses`."""
    return {
        "runs": len(runs),
        "run_states": Counter(run.state for run in runs if run.state),
        "outcomes": Counter(run.outcome for run in runs if run.outcome),
        "instances": sum((run.states for run in runs), Counter[str]()),
        "frames": sum(len(run.frames) for run in runs),
        "inputs": sum(run.inputs for run in runs),
        "differing": sorted(run.key.dag_id for run in runs if run.differences),
    }


def keep_frames(runs: Iterable[ComparedRun], directory: Path) -> None:
    """Write the frames of each run with differences into a file, one per line."""
    for run in runs:
        if run.differences:
            directory.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(frame) for frame in run.frames]
            (directory / f"{run.key.dag_id}.ndjson").write_text("\n".join([*lines, ""]))


@contextmanager
def _open_stack(
    running: Sequence[str] | None, only: Collection[str] | None
) -> Iterator[tuple[str, AirflowRestClient, set[str]]]:
    """Yield the address of a stream server, the REST API of its Airflow, and the examples that it has read.

    Args:
        running: The addresses of both, if they run; otherwise they are started.
        only: The examples; None for all.
    """
    if running:
        server_url, airflow_url = running
        with AirflowRestClient(airflow_url, ADMIN.username, ADMIN.password) as rest:
            for dag_id in only or ():
                eventually(partial(rest.get_dag, dag_id), PARSE_SECONDS, what=f"{dag_id} is read")
            yield server_url, rest, {*(only or ())}
        return
    with (
        chosen_examples(only) as folder,
        DemoStack(
            DATA_DIR,
            dags=[folder] if folder else [],
            examples=not folder,
            triggerer=True,
            postgres_settings=FAST,
            airflow_settings=SETTINGS if folder else {**SETTINGS, **ALL_EXAMPLES},
            serve_options=("--auth", "none"),
            progress=ConsoleReporter(),
        ) as stack,
        stack.rest_client() as rest,
    ):
        yield stack.server_url, rest, {*find_dags(rest, [folder] if folder else example_folders())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="DAG_ID", help="run these DAGs, also those that are listed")
    parser.add_argument("--jobs", type=int, default=4, help="maximum of runs at a time")
    parser.add_argument("--seconds", type=float, default=180.0, help="for each run")
    add_stack_option(parser)
    parser.add_argument("--frames", type=Path, default=DATA_DIR / "example-frames")
    options = parser.parse_args()
    if options.stack and not options.only:
        parser.error("--stack needs --only: a stack that runs has few of the examples")
    started = time.monotonic()
    with _open_stack(options.stack, options.only) as (url, rest, dag_ids):
        chosen = options.only or sorted(dag_ids - set(NOT_RUN))
        runs = asyncio.run(check(url, rest, chosen, REQUESTS, jobs=options.jobs, within=options.seconds))
    keep_frames(runs, options.frames)
    misses = [f"{run.key.dag_id}: {difference}" for run in runs for difference in run.differences]
    # Files that Airflow has not read can still be searched for the names.
    known = [dag_id for dag_id in LISTED if files_naming([dag_id])] if options.only else dag_ids
    misses += find_stale_entries(known, example_folders())
    figures = {"dags": len(dag_ids), "not_run": len(dag_ids - set(chosen)), **report_figures(runs)}
    seconds = round(time.monotonic() - started, 1)
    sys.stdout.write(json.dumps({**figures, "seconds": seconds, "misses": misses}) + "\n")
    return 1 if misses else 0


if __name__ == "__main__":
    raise SystemExit(main())
