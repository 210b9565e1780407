"""Parse DAG files as Airflow does, and write what it would store as JSON; for the interpreter of any version.

Usage: read_dags.py OUTPUT FOLDER..., with `[core] load_examples` off. Writes {"dags": {dag id: serialised DAG},
"errors": {file name: text}, "modules": [names of all modules that were imported]}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:  # before 3.2
    from airflow.models.dagbag import DagBag
from airflow.serialization import serialized_objects

Serialization = getattr(serialized_objects, "DagSerialization", None) or serialized_objects.SerializedDAG


def main(output: str, *folders: str) -> None:
    bags = [DagBag(folder) for folder in folders]
    found = {
        "dags": {dag_id: Serialization.to_dict(dag) for bag in bags for dag_id, dag in bag.dags.items()},
        "errors": {Path(file).name: text for bag in bags for file, text in bag.import_errors.items()},
        "modules": sorted(sys.modules),
    }
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
