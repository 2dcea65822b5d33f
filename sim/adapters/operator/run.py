"""Runs the operator: `tokenpools operator`."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from kubernetes import config
from kubernetes.config.config_exception import ConfigException

from sim.adapters.operator.cluster import Cluster
from sim.adapters.operator.handlers import Operator, operate
from sim.errors import RunError


def run(namespace: str | None, peering: str | None, priority: int | None, liveness: str) -> None:
    """Operate until SIGTERM or SIGINT.

    Raises
    ------
    RunError : no cluster is configured here.
    """
    load_config: Any = config.load_config
    try:
        load_config()
    except ConfigException as error:
        raise RunError(f"no Kubernetes cluster is configured here: {' '.join(str(error).split())}") from None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # it tells of every event that was heard
    chosen = random.randint(1, 2**31 - 1) if priority is None else priority
    asyncio.run(operate(
        Operator(Cluster()), namespace=namespace, peering=peering, priority=chosen, liveness=liveness
    ))  # fmt: skip
