from __future__ import annotations

import sys

import pytest

from support.tiers import NEXT_AIRFLOW, NO_TESTS, ROOT, Tier, make_tiers, run_lanes


def make_tier(name: str, code: int, *, output: str = "") -> Tier:
    return Tier(name, (sys.executable, "-c", f"import sys; print({output!r}); sys.exit({code})"))


def test_tiers_report_their_exit_codes_times_and_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    good = make_tier("good", 0, output="===== 3 passed, 1 skipped in 1.20s =====")
    bad, empty = make_tier("bad", 1, output="a failure"), make_tier("empty", NO_TESTS)
    run_lanes([good, bad, empty])
    assert [tier.exit_code for tier in (good, bad, empty)] == [0, 1, NO_TESTS]
    assert [tier.is_failed for tier in (good, bad, empty)] == [False, True, False]
    assert all(tier.seconds > 0 < tier.cpu_seconds for tier in (good, bad, empty))
    assert good.describe().endswith("exit code 0   3 passed, 1 skipped")
    assert bad.output == "a failure\n"
    assert "a failure" not in capsys.readouterr().out, "it is printed last"


def test_a_tier_without_tests_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    empty = make_tier("empty", NO_TESTS)
    assert empty.is_failed, "it has not run"
    run_lanes([empty])
    assert empty.is_failed


def test_a_core_of_the_tests_runs_on_the_next_airflow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def commands() -> list[str]:
        return [" ".join(tier.command) for tier in make_tiers(["-k", "a or $b"]) if tier.name.startswith("airflow 3")]

    (command,) = commands()
    assert f"AIRFLOW={NEXT_AIRFLOW}" in command
    assert command.endswith("-m pytest tests/airflow -m core -k 'a or $b'")
    assert (ROOT / f"constraints-airflow-{NEXT_AIRFLOW}.txt").exists()

    monkeypatch.setattr("support.tiers.NEXT_AIRFLOW_PYTHON", (3, 99))
    monkeypatch.setenv("PATH", "")
    assert commands() == []
    assert f"Left out: the tests on Airflow {NEXT_AIRFLOW}, which needs Python 3.11" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("selection", "complete"),
    [
        (None, {"airflow", "browser", "integration", "matrix", "smoke", "unit"}),
        ("--fast", {"unit"}),
        ("--unit", {"unit"}),
    ],
)
def test_tiers_have_all_tests_of_their_directories(selection: str | None, complete: set[str]) -> None:
    arguments = [argument for tier in make_tiers(["-x"], selection) for argument in tier.command]
    paths = [argument for argument in arguments if argument.startswith("tests/")]
    assert all((ROOT / path).exists() for path in paths)
    assert len(paths) == len(set(paths))
    files = [path.relative_to(ROOT) for path in ROOT.glob("tests/*/**/test_*.py")]
    missing = [path for path in files if not {str(path), *map(str, path.parents)} & {*paths}]
    assert {path.parts[1] for path in files} - {path.parts[1] for path in missing} == complete
