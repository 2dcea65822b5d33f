"""What a server says of itself before a run: its models, whether it is vLLM or a gateway, its settings."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from sim.errors import InputError
from sim.live.gateway.headers import bearer
from sim.live.replicas.engine_metrics import cache_config, is_v0

STATE_PATH, CAPACITY_PATH = "/admin/state", "/admin/capacity"
_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A server.

    Attributes
    ----------
    model : the first that it lists.
    max_model_tokens : longest prompt plus output, where it says so.
    metrics : URL of its metrics page, if that is vLLM's.
    v0_engine : whether it is vLLM with the engine before V1.
    cache : vLLM's ``cache_config_info``, by label; empty where there is none.
    state, set_capacity : URLs of its state and for its capacity, if it is a gateway of tokenpools that shows them.
    policy : by which that gateway acts.
    words : all that in a sentence.
    """

    model: str
    max_model_tokens: int | None
    metrics: tuple[str, ...]
    cache: Mapping[str, str]
    v0_engine: bool
    state: str | None
    set_capacity: str | None
    policy: str | None
    words: str


def discover(base_url: str, *, key: str | None = None, admin_url: str | None = None, token: str | None = None) -> Found:
    """Ask a server what it is.

    Raises
    ------
    InputError : nobody answers there, or not as an OpenAI-compatible server does.
    """
    if not base_url.startswith(("http://", "https://")):
        fix = "give the root of an OpenAI-compatible server, e.g. http://127.0.0.1:8000"
        raise InputError(base_url or "the server's address", "is no http:// or https:// address", fix)
    return asyncio.run(_discover(base_url.rstrip("/"), key, admin_url, token))


async def _discover(base_url: str, key: str | None, admin_url: str | None, token: str | None) -> Found:
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        admin = (admin_url or base_url).rstrip("/")
        state = await _text(session, admin + STATE_PATH, token)
        try:
            card = await _first_model(session, base_url, key)
        except _NotInForceError:
            models = _read(state).get("models")
            if not isinstance(models, list) or not models or not isinstance(models[0], str):
                raise
            card = {"id": models[0]}
        page = await _text(session, f"{base_url}/metrics", None)
        cache = cache_config(page or "")
        is_vllm = page is not None and "vllm:num_requests_running" in page
    if admin_url is not None and state is None:
        raise InputError(admin_url, "shows no state", "see the gateway's admin setting, and --admin-token")
    is_gateway = state is not None and '"gauges"' in state
    longest = card.get("max_model_len")
    kind = "a gateway that shows its state" if is_gateway else "vLLM" if is_vllm else "a server without vLLM's metrics"
    return Found(
        model=str(card["id"]),
        max_model_tokens=longest if type(longest) is int and 0 < longest < 2**31 else None,
        metrics=(f"{base_url}/metrics",) if is_vllm else (),
        cache=cache,
        v0_engine=is_v0(page or ""),
        state=admin + STATE_PATH if is_gateway else None,
        set_capacity=admin + CAPACITY_PATH if is_gateway else None,
        policy=acting if is_gateway and isinstance(acting := _read(state).get("policy"), str) else None,
        words=f"{base_url}: {kind}, model {card['id']}",
    )


class _NotInForceError(InputError):
    """The key is one of an entitlement that may not ask yet: a run that begins later may still ask."""


def _read(state: str | None) -> dict[str, Any]:
    """Return a gateway's state; nothing where it is none."""
    try:
        found = json.loads(state or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def watching(admin_url: str, *, token: str | None = None) -> tuple[str, list[dict[str, Any]]]:
    """Return by which policy a running gateway acts, and what those that watch it would have done, by tenant.

    Raises
    ------
    InputError : no gateway shows its state there, or nobody watches it.
    """

    async def asked() -> str | None:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            return await _text(session, admin_url.rstrip("/") + STATE_PATH, token)

    state = _read(asyncio.run(asked()))
    if not isinstance(state.get("shadows"), list):
        raise InputError(admin_url, "shows no state", "see the gateway's admin setting, and --admin-token")
    if not state["shadows"]:
        problem = "no policy watches, or nobody has asked for anything yet"
        raise InputError(admin_url, problem, "give shadow: [POLICY, ...] in the gateway's configuration")
    return str(state.get("policy")), state["shadows"]


async def _first_model(session: aiohttp.ClientSession, base_url: str, key: str | None) -> dict[str, Any]:
    url = f"{base_url}/v1/models"
    fix = "give the root of an OpenAI-compatible server, e.g. http://127.0.0.1:8000"
    try:
        async with session.get(url, headers=bearer(key)) as answer:
            if answer.status == 403 and key is not None:
                raise _NotInForceError(url, "answers 403 to the key that was given", "name the model with --model")
            if answer.status in (401, 403):
                raise InputError(url, f"answers {answer.status}",
                                 "give keys with --keys, TOKENPOOLS_KEY_<ENTITLEMENT> or OPENAI_API_KEY")  # fmt: skip
            answer.raise_for_status()
            cards = json.loads(await answer.read())["data"]
            card = cards[0]
            card["id"]
    except aiohttp.ClientResponseError as error:
        raise InputError(url, f"answers {error.status}", fix) from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise InputError(url, f"does not answer ({error or type(error).__name__})", fix) from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InputError(url, "lists no model", fix) from None
    return dict(card)


async def _text(session: aiohttp.ClientSession, url: str, token: str | None) -> str | None:
    try:
        async with session.get(url, headers=bearer(token)) as answer:
            return (await answer.read()).decode(errors="replace") if answer.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
