"""The contract suite: what a policy, router, arrival law or client of your own must do, as pytest classes.

    from tokenpools.testing import PolicyContract

    class TestHalves(PolicyContract):
        examples = {"default": Halves(), "tight": Halves(share=0.1)}

The extra ``testing`` brings what it needs. ``pytest --contract my_package:Halves`` runs it without a test of yours.
"""

from __future__ import annotations

from tokenpools.testing.plugin import rewrite_asserts

rewrite_asserts()

from tokenpools.testing.other_contracts import ArrivalsContract, ClientContract, RouterContract  # noqa: E402
from tokenpools.testing.policy_contract import SPECS, Auditor, PolicyContract, make_core, steps  # noqa: E402

__all__ = [
    "SPECS", "ArrivalsContract", "Auditor", "ClientContract", "PolicyContract", "RouterContract", "make_core", "steps",
]  # fmt: skip
