"""What ``pytest --contract MODULE:CLASS`` collects: the suite for each class that was named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sim.errors import InputError
from sim.scenario import plugins
from tokenpools.testing.other_contracts import ArrivalsContract, ClientContract, Contract, RouterContract
from tokenpools.testing.policy_contract import PolicyContract


class _Named(Contract):
    """Takes its examples from the command line."""

    group = ""

    def found_examples(self, config: Any) -> Mapping[str, Any]:
        found = {}
        for reference in config.getoption("--contract"):
            try:
                cls = plugins.class_of(reference)
                if plugins.group_of(cls) == self.group:
                    found[reference] = cls()
            except InputError as error:
                raise pytest.UsageError(str(error)) from None
            except TypeError as error:
                raise pytest.UsageError(f"{reference}: cannot be made without arguments ({error}); "
                                        "write a test class with examples") from None  # fmt: skip
        return found


class TestPolicies(_Named, PolicyContract):
    """Policies that were named."""

    group = "policies"


class TestRouters(_Named, RouterContract):
    """Routers that were named."""

    group = "routers"


class TestArrivals(_Named, ArrivalsContract):
    """Arrival laws that were named."""

    group = "arrivals"


class TestClients(_Named, ClientContract):
    """Clients that were named."""

    group = "clients"
