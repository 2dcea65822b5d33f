"""What a policy or router is written with: the types of `policies.api`, a base class, and what a policy may claim."""

from __future__ import annotations

from policies.api import *  # noqa: F403
from policies.api import __all__ as _types
from policies.base import PolicyBase
from policies.core import GatewayCore
from policies.registry import Traits

__all__ = [*_types, "GatewayCore", "PolicyBase", "Traits"]  # pyright: ignore[reportUnsupportedDunderAll]
