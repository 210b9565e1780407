from __future__ import annotations

import pytest

from stream_server.cli.doctor.journal_checks import evaluate_lag
from stream_server.cli.doctor.report import Level
from stream_server.cli.doctor.thresholds import Thresholds


@pytest.mark.parametrize(
    ("newest", "change", "installed", "pruned", "level"),
    [
        (10.0, 9.0, 1000.0, False, Level.OK),
        (10.0, None, 1000.0, False, Level.OK),
        (500.0, 9.0, 1000.0, False, Level.PROBLEM),
        (500.0, 9.0, 1000.0, True, Level.PROBLEM),
        (None, 9.0, 1000.0, False, Level.PROBLEM),
        (None, 9.0, 1000.0, True, Level.OK),
        (None, 9.0, 5.0, False, Level.OK),
        (None, 2000.0, 1000.0, False, Level.OK),
        (900.0, -30.0, 1000.0, False, Level.PROBLEM),
        (1.0, -50.0, 1000.0, False, Level.OK),
    ],
)
def test_lag(newest: float | None, change: float | None, installed: float, level: Level, *, pruned: bool) -> None:
    finding = evaluate_lag(
        newest_age=newest, change_age=change, installed_age=installed, pruned=pruned, limits=Thresholds()
    )
    assert finding.level is level, finding
