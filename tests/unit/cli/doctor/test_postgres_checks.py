from __future__ import annotations

from typing import Any

import pytest

from stream_server.cli.doctor.postgres_checks import evaluate_transactions
from stream_server.cli.doctor.report import Level
from stream_server.cli.doctor.thresholds import Thresholds


def transaction(**values: Any) -> Any:
    defaults = {"kind": "session", "name": "airflow (scheduler, pid 1)", "ours": False, "idle": False}
    return {**defaults, "seconds": 1.0, "in_state": 1.0, "held": 5, **values}


@pytest.mark.parametrize(
    ("row", "level", "words"),
    [
        ({}, Level.OK, "1 open, none for long"),
        ({"seconds": 601.0}, Level.WARNING, "601 s old"),
        ({"seconds": 599.0, "held": None}, Level.OK, "none for long"),
        ({"idle": True, "in_state": 61.0}, Level.WARNING, "idle in its transaction for 61 s"),
        ({"idle": True, "in_state": 61.0, "ours": True}, Level.PROBLEM, "idle in its transaction for 61 s"),
        ({"idle": True, "in_state": 5.0, "ours": True}, Level.OK, "none for long"),
        ({"seconds": None, "in_state": None, "held": 1_000_001}, Level.WARNING, "dead rows of 1000001 transactions"),
    ],
)
def test_transactions(row: dict[str, Any], level: Level, words: str) -> None:
    finding = evaluate_transactions([transaction(**row)], Thresholds())
    assert (finding.level, words in finding.found) == (level, True), finding


def test_transactions_of_other_roles_have_an_unknown_age() -> None:
    finding = evaluate_transactions([transaction(), transaction(seconds=None, in_state=None)], Thresholds())
    assert (finding.level, "1 of unknown age" in finding.found) == (Level.OK, True)


def test_own_idle_transaction_comes_before_others() -> None:
    rows = [transaction(idle=True, in_state=900.0), transaction(idle=True, in_state=61.0, ours=True)]
    assert evaluate_transactions(rows, Thresholds()).level is Level.PROBLEM
