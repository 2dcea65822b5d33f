"""The kinds run in a scenario under their names."""

from pathlib import Path

import tokenpools

SCENARIO = Path(__file__).parents[1] / "scenario.yaml"


def test_the_scenario_runs_and_names_the_package() -> None:
    results = tokenpools.run(tokenpools.load_scenario(SCENARIO))
    found = {row["kind"]: row["class"] for row in results.manifest["plugins"]}
    assert found == {
        "fair-halves": "fair_halves.policy:FairHalves",
        "two-choices": "fair_halves.router:TwoChoices",
        "office-hours": "fair_halves.arrivals:OfficeHours",
        "once-more": "fair_halves.client:OnceMore",
    }
    refused = results.summary.set_index(["policy", "tenant"])["refused"]
    assert refused["fair-halves", "batch"] > 0
    assert refused["none", "batch"] == 0
