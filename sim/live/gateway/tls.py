"""TLS for the gateway's own address: what uvicorn is told, and another certificate without a stop."""

from __future__ import annotations

import ssl
from typing import Any

from sim.errors import ScenarioError
from sim.live.gateway.settings import Tls


def server_options(tls: Tls | None) -> dict[str, Any]:
    """Return what a `uvicorn.Config` needs."""
    if tls is None:
        return {}
    options: dict[str, Any] = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
    if tls.client_ca is not None:
        options |= {"ssl_ca_certs": tls.client_ca, "ssl_cert_reqs": int(ssl.CERT_REQUIRED)}
    return options


def check(tls: Tls | None, file: str) -> None:
    """Look whether the files are there and fit each other.

    Raises
    ------
    ScenarioError : they do not.
    """
    if tls is None:
        return
    context, name, path = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "certificate", tls.certificate
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
        if tls.client_ca is not None:
            name, path = "client_ca", tls.client_ca
            context.load_verify_locations(tls.client_ca)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ScenarioError(
            file, f"listen.tls.{name}", f"{path} cannot be used: {error}", "give files in PEM that belong together"
        ) from None


def _no_password() -> str:
    """Return no password: OpenSSL would ask the terminal for one."""
    return ""


def renew(context: ssl.SSLContext, tls: Tls, file: str) -> None:
    """Read the files again; connections from now on get what is in them.

    Raises
    ------
    ScenarioError : they cannot be used; what there was stays.
    """
    check(tls, file)
    context.load_cert_chain(tls.certificate, tls.key)
    if tls.client_ca is not None:
        context.load_verify_locations(tls.client_ca)
