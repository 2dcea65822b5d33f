"""A result in MLflow: a run for each case and replication, with its parameters, metrics and where it comes from.

MLflow is asked for by its own client, so that the target is whatever it takes: a folder, a server, a database.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.analysis.study import Study
from sim.analysis.summary import ALL
from sim.errors import InputError, RunError
from sim.extras import require

_LABELS = ("policy", "variant", "replication", "tenant", "run_id", "seed")
_MOST_PARAM_CHARS = 6000  # of MLflow itself


def export(folder: Path, *, tracking_uri: str, experiment: str | None = None) -> list[str]:
    """Write a result into MLflow and return the ids of the new runs.

    A run that is there already, by its digest, is left as it is: exporting twice adds nothing.

    Parameters
    ----------
    tracking_uri : as MLflow takes it, e.g. ``file:./mlruns`` or ``http://127.0.0.1:5000``.
    experiment : without it the scenario's title.

    Raises
    ------
    InputError : the result cannot be read, or MLflow is not installed.
    RunError : MLflow does not take it.
    """
    require("mlflow", "export mlflow")
    study = Study(folder)
    if not len(study.replications):
        raise InputError(str(folder), "holds no run that ended", "run it, or name another result")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow and its libraries, about themselves
        import mlflow

        try:
            client = mlflow.MlflowClient(tracking_uri=tracking_uri)
            name = experiment or str(study.scenario.get("title") or folder.resolve().name)
            there = client.get_experiment_by_name(name)
            where = there.experiment_id if there is not None else client.create_experiment(name)
            return [_run(client, where, study, keys, rows) for keys, rows in _cases(study) if not _known(
                client, where, _digest(study, keys))]  # fmt: skip
        except mlflow.exceptions.MlflowException as error:
            raise RunError(f"{tracking_uri}: MLflow: {str(error).strip().splitlines()[0][:200]}") from None
        except OSError as error:
            raise RunError(f"{tracking_uri}: {error.strerror or error}") from None


def _cases(study: Study) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return the labels of each case and replication, and its rows, one a tenant."""
    labels = ["policy", *study.varied, "replication"]
    found = []
    for key, rows in study.replications.groupby(labels, observed=True, sort=False, dropna=False):
        records: list[Any] = rows.to_dict("records")
        found.append((dict(zip(map(str, labels), key, strict=True)), records))
    return found


def _run(client: Any, experiment: str, study: Study, keys: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    words = ", ".join(str(value) for name, value in keys.items() if name != "replication")
    made = client.create_run(
        experiment, run_name=f"{words} #{keys['replication']}",
        tags={"tokenpools.digest": _digest(study, keys), "tokenpools.result": study.folder.name}
        | {f"tokenpools.{name}": str(value) for name, value in _origin(study.manifest).items()},
    )  # fmt: skip
    run_id = str(made.info.run_id)
    pool = study.scenario["pool"]
    params = {str(name): value for name, value in keys.items()} | {
        "seed": study.scenario["seed"], "horizon_s": study.horizon_s, "replicas": pool["replicas"],
        "profile": pool["profile"]["name"],
    }  # fmt: skip
    for name, value in params.items():
        client.log_param(run_id, _key(name), str(value)[:_MOST_PARAM_CHARS])
    for row in rows:
        who = "" if row["tenant"] == ALL else f"{_key(str(row['tenant']))}/"
        for name, value in row.items():
            if name in keys or name in _LABELS or isinstance(value, bool | str):
                continue
            if isinstance(value, int | float) and math.isfinite(value):
                client.log_metric(run_id, who + _key(str(name)), float(value))
    client.log_text(run_id, json.dumps(study.scenario, indent=2), "scenario.json")
    client.set_terminated(run_id)
    return run_id


def _known(client: Any, experiment: str, digest: str) -> bool:
    return bool(client.search_runs([experiment], f"tags.`tokenpools.digest` = '{digest}'", max_results=1))


def _digest(study: Study, keys: Mapping[str, Any]) -> str:
    """Return what a run is known by: its scenario, and which of the scenario's runs it is."""
    from hashlib import sha256

    text = json.dumps([study.scenario, {str(name): str(value) for name, value in keys.items()}], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:32]


def _origin(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in ("commit", "versions") if manifest.get(name)}


def _key(name: str) -> str:
    """Return a name that MLflow takes: letters, digits and ``_-. /``."""
    return re.sub(r"[^\w. /-]", "_", name)
