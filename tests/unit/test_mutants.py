"""The faults of `make check-mutants` fit the code."""

from __future__ import annotations

import pytest

from support.mutant_table import MUTANTS, Mutant
from support.mutants import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_fault_can_be_made(mutant: Mutant) -> None:
    assert (ROOT / mutant.path).read_text().count(mutant.old) == 1
    assert all((ROOT / test).exists() for test in mutant.tests)
