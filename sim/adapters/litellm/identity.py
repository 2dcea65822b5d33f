"""Whose a request to LiteLLM is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sim.adapters.admission.tenants import Tenants


def names_of(auth: Any) -> Iterator[str]:
    """Return what a key of LiteLLM may be called in the configuration, the most particular first.

    ``key:`` alias or hash, ``team:`` id, ``org:`` id. The prefix keeps them apart: an alias is chosen by whoever makes
    the key, and must not be another team's name.
    """
    for prefix, attributes in (
        ("key", ("key_alias", "token", "api_key")), ("team", ("team_id",)), ("org", ("org_id", "organization_id")),
    ):  # fmt: skip
        for attribute in attributes:
            value = getattr(auth, attribute, None)
            if isinstance(value, str) and value:
                yield f"{prefix}:{value}"


def tenant_of(auth: Any, tenants: Tenants) -> str:
    """Return the name under which a key is served: the first that is known."""
    names = list(names_of(auth))
    for name in names:
        if name in tenants:
            return name
    return next((name for name in reversed(names) if not name.startswith("key:")), "without a team")
