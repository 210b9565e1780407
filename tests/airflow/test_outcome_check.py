"""Some cases of `make check-outcome`, in processes of their own, because importing Airflow configures the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
SEED = "suite"
DEADLINE = 600.0


def check_outcome(kind: str, cases: int) -> dict[str, Any]:
    """Return the figures of some cases, none of which is wrong."""
    options = ["--cases", str(cases), "--kind", kind, "--seed", SEED, "--jobs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "support.outcome_check", *options],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, figures["cases"], figures["wrong"]) == (0, cases, 0), done.stdout + done.stderr
    return figures


def test_predictions_equal_what_airflows_scheduler_does() -> None:
    figures = check_outcome("predictions", 120)
    assert figures["failed_answers"] > 120, "there was something to predict"


def test_clients_get_the_same_right_outcome_whatever_intervenes() -> None:
    figures = check_outcome("histories", 40)
    assert figures["histories"] == 40
    assert all(figures["interventions"].values()), "each intervention happened"
