"""Runs several commands of Airflow with one import; for the interpreter of an environment with Airflow.

Commands are the lines of standard input, each a JSON list of arguments: `["users", "delete", "--username", "ada"]`.
"""

from __future__ import annotations

import json
import sys

from airflow.__main__ import main

for line in sys.stdin:
    sys.argv = ["airflow", *json.loads(line)]
    main()
