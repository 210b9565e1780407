"""Run by an interpreter with Airflow: several of its commands, for which it is imported once.

Commands are the lines of standard input, each a JSON list of arguments: `["users", "delete", "--username", "ada"]`.
"""

from __future__ import annotations

import json
import sys

from airflow.__main__ import main

for line in sys.stdin:
    sys.argv = ["airflow", *json.loads(line)]
    main()
