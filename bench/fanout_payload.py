"""The payload of all candidates of the fan-out: a `task` frame, identified by its number."""

from __future__ import annotations

import re
from datetime import datetime, timezone

DAG_ID = "fan_out"
STATES = ("queued", "running")
NUMBER = re.compile(rb'"try_number":(\d+)')


def run_id(index: int) -> str:
    return f"manual_run_{index:05}"


def payload(number: int, runs: int) -> bytes:
    """Return the frame as JSON, for servers that don't build it themselves."""
    at = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
    state, before = STATES[number % 2], STATES[(number + 1) % 2]
    return (
        f'{{"type":"task","dag_id":"{DAG_ID}","run_id":"{run_id(number % runs)}","seq":{number},"at":"{at}",'
        f'"task_id":"part_00","map_index":-1,"try_number":{number},"state":"{state}","previous_state":"{before}"}}'
    ).encode()
