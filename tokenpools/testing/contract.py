"""What the contracts share: examples, and how tests come by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class Contract:
    """A suite. Inherit from one in a class whose name begins with Test, and give examples.

    Attributes
    ----------
    examples : objects of the class under test, by a name for each; every test runs for every one.
    """

    examples: ClassVar[Mapping[str, Any]] = {}

    def found_examples(self, config: Any) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the examples."""
        return self.examples

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Give every test the examples."""
        if "params" in metafunc.fixturenames:
            found = self.found_examples(metafunc.config)
            metafunc.parametrize("params", list(found.values()), ids=list(found))
