"""What pytest loads by itself where tokenpools is installed: one option, and nothing else until it is given."""

from __future__ import annotations

from pathlib import Path

import pytest


def rewrite_asserts() -> None:
    """Have failing asserts of the suite show their values."""
    pytest.register_assert_rewrite("tokenpools.testing.policy_contract", "tokenpools.testing.other_contracts")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--contract``."""
    parser.getgroup("tokenpools").addoption(
        "--contract", metavar="MODULE:CLASS", action="append", default=[],
        help="run tokenpools' contract suite for a policy, router, arrival law or client, with its defaults",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the suite in the place of the folder's tests, where it is asked for."""
    if config.getoption("--contract"):
        config.args = [str(Path(__file__).with_name("of_named_classes.py"))]
