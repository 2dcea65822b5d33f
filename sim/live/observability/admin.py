"""Pages for whoever runs the gateway: metrics, the state as JSON and a page that shows it, and the pool's capacity.

They are shown on an address of their own, or beside the API to who brings the admin token; never to just anybody who
can reach the API. The page itself holds no data: it asks for them, with the token that its reader gives it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from functools import cache
from importlib.resources import files

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sim.live.gateway.authentication import hashed
from sim.live.gateway.settings import LOOPBACK, Admin
from sim.live.observability.state import State

_MOST_BYTES = 4096
_TAG = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)

Endpoint = Callable[[Request], Awaitable[Response]]


class Pages:
    """The pages.

    Parameters
    ----------
    set_slots : makes the pool have so many slots (None: as provisioned); None where nobody may.
    """

    def __init__(
        self, admin: Admin, state: State, registry: CollectorRegistry,
        set_slots: Callable[[int | None], None] | None = None,
    ) -> None:
        self._admin = admin
        self._state = state
        self._registry = registry
        self._set_slots = set_slots

    def routes(self) -> list[BaseRoute]:
        """Return the routes, every one of which checks who asks."""
        return [
            Route("/", self._page, methods=["GET"]),
            Route("/metrics", self._checked(self._metrics), methods=["GET"]),
            Route("/admin/state", self._checked(self._read), methods=["GET"]),
            Route("/admin/capacity", self._checked(self._capacity), methods=["POST"]),
        ]

    def _checked(self, endpoint: Endpoint) -> Endpoint:
        async def check(request: Request) -> Response:
            refused = self._refusal(request)
            return await endpoint(request) if refused is None else refused

        return check

    def _refusal(self, request: Request) -> Response | None:
        """Return why not; None where whoever asks may."""
        digest = self._admin.token_digest
        if digest is None:
            # A page of another site, whose name was made to lead here, must not read what only this machine may.
            name = request.url.hostname or ""
            if self._admin.host in LOOPBACK and name not in LOOPBACK:
                return _error(403, "forbidden", "The admin pages are shown under the name of this machine only.")
            return None
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(hashed(token.strip()), digest):
            return None
        refused = _error(401, "invalid_admin_token", "Give the admin token as a bearer token.")
        refused.headers["www-authenticate"] = "Bearer"
        return refused

    async def _page(self, request: Request) -> Response:  # noqa: ARG002 - the page is the same for everybody
        text, policy = page()
        return Response(text, media_type="text/html", headers={
            "content-security-policy": policy, "cache-control": "no-store", "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff", "x-frame-options": "DENY",
        })  # fmt: skip

    async def _metrics(self, request: Request) -> Response:  # noqa: ARG002
        return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _read(self, request: Request) -> Response:  # noqa: ARG002
        found = {**self._state.read(), **await self._state.accounts()}
        return JSONResponse(found, headers={"cache-control": "no-store"})

    async def _capacity(self, request: Request) -> Response:
        """Set the slots of the pool: ``{"slots": 8}``, null for as provisioned."""
        if self._set_slots is None:
            return _error(404, "not_found", "The capacity of this pool cannot be set here.")
        # A form of another site can send no such type without asking first.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _error(415, "unsupported_media_type", "Send application/json.")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return _error(413, "request_too_large", "The body is too large.")
        try:
            asked = json.loads(body)
            slots = asked["slots"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _error(400, "invalid_request", 'Send {"slots": 8}, or {"slots": null} for all.')
        if isinstance(slots, bool) or not (slots is None or (isinstance(slots, int) and 0 <= slots <= 10**9)):
            return _error(400, "invalid_request", "slots must be a whole number, 0 or more, or null.")
        self._set_slots(slots)
        return JSONResponse({"slots": slots})


@cache
def page() -> tuple[str, str]:
    """Return the admin page and the content security policy that lets in its own script and style and nothing else."""
    text = (files("sim.live.observability") / "admin_page.html").read_text(encoding="utf-8")
    hashes = {
        kind: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        for kind, content in _TAG.findall(text)
    }
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy


def _error(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "admin_error", "param": None, "code": code}}, status)
