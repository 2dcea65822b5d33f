"""A callback for LiteLLM's proxy: ``litellm_settings: {callbacks: tokenpools.litellm.handler}`` (docs/adapters.md)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from sim.adapters.litellm.hooks import Hooks

if TYPE_CHECKING:

    class CustomLogger:
        """LiteLLM's base class of callbacks."""

else:
    try:
        from litellm.integrations.custom_logger import CustomLogger
    except ImportError:  # without LiteLLM the hooks can be called by whoever has its objects
        CustomLogger = object


class Handler(Hooks, CustomLogger):
    """The hooks as LiteLLM takes them: it looks for each in the class itself, not in those it is made from."""

    async_pre_call_hook = Hooks.async_pre_call_hook
    async_post_call_success_hook = Hooks.async_post_call_success_hook
    async_post_call_failure_hook = Hooks.async_post_call_failure_hook
    async_post_call_streaming_iterator_hook = Hooks.async_post_call_streaming_iterator_hook

    def __init__(self) -> None:
        CustomLogger.__init__(self)
        Hooks.__init__(self)
        with contextlib.suppress(RuntimeError):  # no loop runs: it begins with the first request
            self._opening = asyncio.get_running_loop().create_task(self.open())


handler = Handler()

__all__ = ["Handler", "handler"]
