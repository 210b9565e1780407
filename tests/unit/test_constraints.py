from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OTHERS = sorted(ROOT.glob("constraints-airflow-*.txt"))


def pinned(file: Path) -> set[str]:
    """Return the packages that a file pins, without those that only Python 3.10 needs."""
    lines = [line for line in file.read_text().splitlines() if "python_full_version < '3.11'" not in line]
    return {line.partition("==")[0] for line in lines}


def test_there_are_pins_for_another_airflow() -> None:
    assert OTHERS


@pytest.mark.parametrize("file", OTHERS, ids=lambda file: file.name)
def test_pins_for_another_airflow_have_all_packages(file: Path) -> None:
    assert pinned(ROOT / "constraints.txt") - pinned(file) == set(), "run `make constraints`"
    assert f"apache-airflow=={file.stem.removeprefix('constraints-airflow-')}" in file.read_text().splitlines()
