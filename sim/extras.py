"""Which extra of tokenpools brings a library, and how to install it here."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path

from sim.errors import InputError

# The top-level module of each library that is not installed with the core, and the extra that brings it.
EXTRA_OF = {
    "aiohttp": "live",
    "httptools": "live",
    "prometheus_client": "live",
    "redis": "live",
    "starlette": "live",
    "uvicorn": "live",
    "aiconfigurator_core": "aiconfigurator",
    "grpc_health": "envoy",
    "hpack": "envoy",
    "grpc_reflection": "envoy",
    "kopf": "operator",
    "kubernetes": "kubernetes",
    "tokenizers": "tokenizer",
    "opentelemetry": "otel",
    "distributed": "dask",
    "dask": "dask",
    "ray": "ray",
    "mlflow": "mlflow",
    "optuna": "plan",
    "scipy": "stats",
    "plotly": "report",
    "pooch": "traces",
    "requests": "traces",
}


def missing(error: ModuleNotFoundError) -> tuple[str, str] | None:
    """Return what is wrong and how to mend it where a library of an extra is missing; None for any other module."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRA_OF:
        return None
    return needs(EXTRA_OF[module], module)


def needs(extra: str, module: str) -> tuple[str, str]:
    """Return the words for a library that is not there: the problem and the fix."""
    return f"needs the extra {extra!r} ({module} is not installed)", f"install it with: {how_to_install(extra)}"


def require(module: str, what: str) -> None:
    """Raise `InputError` where a library of an extra is missing: before the work that would end for want of it.

    Parameters
    ----------
    what : what needs it, as the error begins.
    """
    if find_spec(module) is None:
        raise InputError(what, *needs(EXTRA_OF[module], module))


def how_to_install(extra: str) -> str:
    """Return the command line that installs an extra into the environment that runs."""
    root = Path(__file__).resolve().parents[1]
    pip = f"{shlex.quote(sys.executable)} -m pip" if find_spec("pip") else "uv pip"
    python = "" if find_spec("pip") else f" --python {shlex.quote(sys.executable)}"
    if (root / "pyproject.toml").is_file():  # runs from a checkout
        return f"{pip} install{python} -e {shlex.quote(f'{root}[{extra}]')}"
    return (
        f"{pip} install{python} {' '.join(shlex.quote(one) for one in _requirements(extra)) or f'tokenpools[{extra}]'}"
    )


def _requirements(extra: str) -> list[str]:
    """Return what an extra asks for: an installed tokenpools comes from no index that could be named."""
    try:
        every = requires("tokenpools") or []
    except PackageNotFoundError:
        return []
    found = []
    for one in every:
        what, _, when = one.partition(";")
        if when.replace('"', "'").strip() == f"extra == '{extra}'":
            found.append(what.strip())
    return found
