"""The exit code of `make check-outcome`; `tests/airflow/test_outcome_check.py` runs its cases."""

from __future__ import annotations

import argparse
import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support import outcome_check
from support.outcome_check import CHUNK, CheckReport

TWO_CHUNKS = argparse.Namespace(cases=2 * CHUNK, seed="s", jobs=1, url="sqlite://")


class InterruptingRemarks(list[str]):
    """Raises a signal when it is read, after the figures of its chunk were added."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __iter__(self) -> Iterator[str]:
        signal.raise_signal(self._number)
        return super().__iter__()


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("interrupt", "code", "cases"),
    [(None, 0, 2 * CHUNK), (signal.SIGINT, 1, CHUNK), (signal.SIGTERM, 1, CHUNK)],
)
def test_only_a_complete_check_succeeds(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    interrupt: signal.Signals | None,
    code: int,
    cases: int,
) -> None:
    def check(seed: str, kinds: Sequence[str], numbers: range) -> CheckReport:
        return CheckReport(Counter(cases=len(numbers)), [] if interrupt is None else InterruptingRemarks(interrupt))

    # The cases need Airflow, which configures the process.
    replacements: dict[str, Any] = {
        "ProcessPoolExecutor": ThreadPoolExecutor,
        "prepare": lambda home, url: None,
        "check": check,
        "find_missing_kinds": lambda figures, kinds: [],
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(outcome_check, name, replacement)
    assert outcome_check._check_all(TWO_CHUNKS, ["predictions"], "home") == code
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["cases"] == cases
