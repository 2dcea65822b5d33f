"""Names that a scenario gives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def check_names(what: str, given: Iterable[str], names: Sequence[str]) -> None:
    """Check that all that is given is given to entitlements that there are; ``what`` is the field.

    Raises
    ------
    ValueError : one names no entitlement.
    """
    for name in given:
        if name not in names:
            raise ValueError(f"{what} names {name!r}, which is no entitlement; give one of {names}")
