"""The admin API: keys, budgets, use and the audit log, on an address and with a token of its own.

It answers nobody without the token, compares it in constant time, and asks an address that sent wrong ones to wait: ten
of them empty its bucket, which fills by one in six seconds.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from policies.meters import ContinuousBucket
from sim.errors import InputError, TokenpoolsError
from sim.live.accounts.keys import KeyAdmin, public
from sim.live.accounts.store import AccountStore, StoreError
from sim.live.gateway.authentication import hashed

_MOST_BYTES = 64 * 1024
_MOST_ADDRESSES = 10_000
_WRONG, _WRONG_PER_S = 10, 1 / 6
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")

Endpoint = Callable[[Request], Awaitable[Response]]


class WrongTokens:
    """How many wrong tokens each address has sent; of many addresses those that were heard of last."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._buckets: OrderedDict[str, ContinuousBucket] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Return how long an address has to wait before it is heard; 0 for not at all."""
        bucket = self._buckets.get(address)
        return 0.0 if bucket is None else bucket.wait_s(1.0, self._now_s()) or 0.0

    def add(self, address: str) -> None:
        """Take note of a wrong one."""
        bucket = self._buckets.pop(address, None) or ContinuousBucket(rate_per_s=_WRONG_PER_S, depth=_WRONG)
        if len(self._buckets) >= _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        self._buckets[address] = bucket
        bucket.reserve(1.0, self._now_s())


class AccountsApi:
    """The API's application.

    Parameters
    ----------
    token_digest : SHA-256 of the token.
    changed : called after each change, for the gateway to go by it at once; it may raise why it cannot.
    check : called before a change is written, with what would be written; raises what contradicts the tree.
    state : returns how budgets stand.
    """

    def __init__(
        self, store: AccountStore, token_digest: bytes, *, changed: Callable[[], Awaitable[None]],
        entitlements: Callable[[], list[str]], nodes: Callable[[], list[str]],
        state: Callable[[], list[dict[str, Any]]], wrong: WrongTokens | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._digest = token_digest
        self._changed = changed
        self._entitlements = entitlements
        self._nodes = nodes
        self._state = state
        self._wrong = wrong or WrongTokens()
        self._now_s = now_s
        self._lock = asyncio.Lock()

    def app(self) -> Starlette:
        """Return it."""
        return Starlette(routes=[
            Route("/v1/keys", self._checked(self._list), methods=["GET"]),
            Route("/v1/keys", self._checked(self._create), methods=["POST"]),
            Route("/v1/keys/{name}/{action}", self._checked(self._act), methods=["POST"]),
            Route("/v1/budgets", self._checked(self._budgets), methods=["GET"]),
            Route("/v1/budgets/{node:path}", self._checked(self._set_budgets), methods=["PUT", "DELETE"]),
            Route("/v1/usage", self._checked(self._use), methods=["GET"]),
            Route("/v1/audit", self._checked(self._audit), methods=["GET"]),
        ])  # fmt: skip

    def _checked(self, endpoint: Endpoint) -> Endpoint:
        async def answer(request: Request) -> Response:
            address = request.client.host if request.client is not None else ""
            wait_s = self._wrong.wait_s(address)
            if wait_s > 0:
                refused = _error(429, "too_many_wrong_tokens", "Too many wrong tokens came from this address.")
                refused.headers["retry-after"] = str(int(wait_s) + 1)
                return refused
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(hashed(token.strip()), self._digest):
                self._wrong.add(address)
                refused = _error(401, "invalid_admin_token", "Give the token of accounts.api as a bearer token.")
                refused.headers["www-authenticate"] = "Bearer"
                return refused
            try:
                found = await endpoint(request)
            except StoreError as error:
                found = _error(503, "store_unavailable", f"The store is out of reach: {error}.")
            except TokenpoolsError as error:
                found = _error(400, "invalid_request", f"{error}.")
            found.headers["cache-control"] = "no-store"
            return found

        return answer

    def _admin(self, request: Request) -> KeyAdmin:
        address = request.client.host if request.client is not None else "?"
        return KeyAdmin(self._store, f"api {address}", self._now_s)

    # ----------------------------------------------------------------------------------------------------------------

    async def _list(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"keys": [public(one) for one in self._store.all_keys()]})

    async def _create(self, request: Request) -> Response:
        asked = await _body(
            request, name=str, entitlement=str, expires_s=(int, float), limit=dict, budgets=list
        )
        name, entitlement = asked.get("name"), asked.get("entitlement")
        if name is None or entitlement is None:
            raise InputError("body", "name or entitlement is missing", 'give {"name": "ci", "entitlement": "batch"}')
        if entitlement not in self._entitlements():
            known = ", ".join(self._entitlements())
            raise InputError("entitlement", f"there is no {entitlement[:80]!r}", f"give one of {known}")
        async with self._lock:
            secret = self._admin(request).create(
                name, entitlement, expires_s=asked.get("expires_s"), limit=asked.get("limit"),
                budgets=asked.get("budgets", ()),
            )  # fmt: skip
            try:
                await self._changed()
            except TokenpoolsError:
                self._admin(request).disable(name)
                raise
        return JSONResponse({"name": name, "key": secret}, 201)

    async def _act(self, request: Request) -> Response:
        name, action = request.path_params["name"], request.path_params["action"]
        asked = await _body(request, grace_s=(int, float), at_s=(int, float))
        admin = self._admin(request)
        answer: dict[str, Any] = {"name": name}
        async with self._lock:
            if action == "rotate":
                answer["key"] = admin.rotate(name, float(asked.get("grace_s", 0.0)))
            elif action == "expire":
                admin.expire(name, float(asked.get("at_s", self._now_s())))
            elif action in ("disable", "enable"):
                admin.disable(name, disabled=action == "disable")
            else:
                return _error(404, "not_found", "A key can be rotated, expired, disabled or enabled.")
            await self._changed()
        return JSONResponse(answer)

    async def _budgets(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"budgets": self._state()})

    async def _set_budgets(self, request: Request) -> Response:
        node = request.path_params["node"]
        if node not in self._nodes():
            raise InputError("node", f"there is no {node[:80]!r}", f"give one of {', '.join(self._nodes()[:50])}")
        budgets = None
        if request.method == "PUT":
            budgets = (await _body(request, budgets=list)).get("budgets")
            if budgets is None:
                raise InputError("budgets", "missing", 'give {"budgets": [{"per": "day", "limit": 100000}]}')
        async with self._lock:
            before = self._store.budgets().get(node)
            self._admin(request).set_budgets(node, budgets)
            try:
                await self._changed()
            except TokenpoolsError:
                self._admin(request).set_budgets(node, before)
                raise
        return JSONResponse({"budgets": [one for one in self._state() if one["node"] == node]})

    async def _use(self, request: Request) -> Response:
        today = datetime.fromtimestamp(self._now_s(), UTC).strftime("%Y-%m-%d")
        since, until = request.query_params.get("since", today[:8] + "01"), request.query_params.get("until", today)
        for day in (since, until):
            if not _DAY.fullmatch(day):
                raise InputError("since, until", f"{day[:40]!r} is no day", f"give e.g. {today}")
        key = request.query_params.get("key")
        rows = self._store.use(since, until)
        return JSONResponse({
            "usage": [{**row._asdict(), **use._asdict()} for row, use in rows.items() if key in (None, row.key)]
        })  # fmt: skip

    async def _audit(self, request: Request) -> Response:
        most = request.query_params.get("most", "100")
        if not most.isdigit() or not 0 < int(most[:9]) <= 10_000:
            raise InputError("most", f"{most[:40]!r}", "give a whole number from 1 to 10000")
        return JSONResponse({"audit": [one._asdict() for one in self._store.audit(int(most))]})


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": code}}, status)


async def _body(request: Request, **fields: Any) -> dict[str, Any]:
    """Return the fields of a JSON body.

    Raises
    ------
    InputError : it is none, too large, or has others.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise InputError("body", "is too large", f"send at most {_MOST_BYTES} bytes")
    if not body:
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("body", "is no JSON", "send a JSON object") from None
    if not isinstance(found, dict):
        raise InputError("body", "is no object", "send a JSON object")
    for name, value in found.items():
        if name not in fields:
            raise InputError("body", f"unknown field {name[:40]!r}", f"it may have {', '.join(fields)}")
        if isinstance(value, bool) or not isinstance(value, fields[name]):
            raise InputError(name, "is of another type", "see the documentation")
    return found
