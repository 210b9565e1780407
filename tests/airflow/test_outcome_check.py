"""Some cases of `make check-outcome`, none of which is wrong."""

from __future__ import annotations

from support.make_targets import run_to_its_end

SEED = "suite"


def test_predictions_equal_what_airflows_scheduler_does() -> None:
    options = f"--kind predictions --seed {SEED} --jobs 1"
    figures = run_to_its_end("check-outcome", "CASES=120", f"ARGS={options}")
    assert (figures["cases"], figures["wrong"]) == (120, 0)
    assert figures["failed_answers"] > 120, "there was something to predict"


def test_clients_get_the_same_right_outcome_whatever_intervenes() -> None:
    options = f"--kind histories --seed {SEED} --jobs 1"
    figures = run_to_its_end("check-outcome", "CASES=40", f"ARGS={options}")
    assert (figures["histories"], figures["wrong"]) == (40, 0)
    assert all(figures["interventions"].values()), "each intervention happened"
