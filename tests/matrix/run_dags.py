"""Run DAGs with `dag.test()`, and write the run ids; for the interpreter of any version.

Usage: run_dags.py OUTPUT FOLDER DAG_ID.... Writes {dag id: run id} as JSON.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

from airflow.sdk.execution_time import supervisor

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # before 3.2
    from airflow.models.dagbag import DagBag


def main(output: str, folder: str, *dag_ids: str) -> None:
    # As 3.3 does: before, each task makes an API of its own, which takes a second of CPU time.
    supervisor.in_process_api_server = functools.cache(supervisor.in_process_api_server)
    bag = DagBag(folder)
    Path(output).write_text(json.dumps({dag_id: bag.dags[dag_id].test().run_id for dag_id in dag_ids}))


if __name__ == "__main__":
    main(*sys.argv[1:])
