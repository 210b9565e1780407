"""Some cases of `make check-outcome`, in processes of their own, because importing Airflow configures the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
CASES = 300
DEADLINE = 300.0


def test_predictions_equal_what_airflows_scheduler_does() -> None:
    command = [sys.executable, "-m", "support.outcome_check", "--cases", str(CASES), "--kind", "predictions"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, figures["cases"], figures["wrong"]) == (0, CASES, 0), done.stdout + done.stderr
    assert figures["failed_answers"] > CASES, "there was something to predict"
