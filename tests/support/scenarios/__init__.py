"""What happens to runs in real deployments, each written once: `SCENARIOS`.

`tests/integration/test_scenarios.py` plays each one while clients of all kinds watch. A scenario calls `step` wherever
clients must know what the tables have. It leaves the run ended or deleted.
"""

from __future__ import annotations

from support.scenarios import human_input, interventions, scheduled, skipping
from support.scenarios.scenario_run import Scenario

SCENARIOS: dict[str, Scenario] = {
    name: scenario
    for module in (scheduled, interventions, skipping, human_input)
    for name, scenario in vars(module).items()
    if getattr(scenario, "__module__", "") == module.__name__ and not name.startswith("_")
}
