"""A result in MLflow's file store: every run and figure once, whatever is exported again."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from experiments.small import TREE
from typer.testing import CliRunner

from sim.analysis.study import Study
from sim.cli import app
from sim.errors import RunError
from sim.experiments.sweep import sweep
from sim.scenario.load import parse_scenario

pytestmark = [
    pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra mlflow is not installed"),
    pytest.mark.filterwarnings("ignore"),  # MLflow's own
]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("result") / "r"
    sweep(parse_scenario(TREE | {"replications": 2}, "test"), folder)
    return folder


def test_every_run_is_there_once_with_its_figures(result: Path, tmp_path: Path) -> None:
    import mlflow  # here: it takes two seconds, of every run of whatever tests

    uri = f"file:{tmp_path / 'mlruns'}"
    asked = ["export", "mlflow", str(result), "--tracking-uri", uri, "--experiment", "mine"]
    study = Study(result)
    count = len(study.replications.groupby(["policy", *study.varied, "replication"], observed=True))
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert f"{count} new run" in done.output
    assert "0 new runs" in CliRunner().invoke(app, asked, catch_exceptions=False).output
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert len(found) == count
    for run in found:
        rows = study.replications.query(
            f"policy == '{run.data.params['policy']}' and replication == {run.data.params['replication']}"
        )
        for row in rows.to_dict("records"):
            who = "" if row["tenant"] == "all" else f"{row['tenant']}/"
            assert run.data.metrics[f"{who}offered"] == row["offered"]
        assert run.info.status == "FINISHED"
        assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["scenario.json"]


def test_a_store_that_mlflow_does_not_take_is_one_line(result: Path) -> None:
    done = CliRunner().invoke(app, ["export", "mlflow", str(result), "--tracking-uri", "foo:bar"])
    assert isinstance(done.exception, RunError)
    assert "\n" not in str(done.exception)
    assert "foo:bar" in str(done.exception)
