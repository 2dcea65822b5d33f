"""Keeps a file of a namespace's TokenPools and TokenEntitlements, and tells the gateway of its pod when they change.

It runs beside the gateway from the same image (``python -m sim.live.replicas.pool_objects``), so that no other image
with a shell and a client has to be kept up to date.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sim.errors import InputError, RunError
from sim.extras import needs
from sim.records.whole_files import whole_file

LOG = logging.getLogger("tokenpools.pool_objects")

GROUP, VERSION = "inference.example.com", "v1"
PLURALS = ("tokenpools", "tokenentitlements")
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT_S = 10.0

List = Callable[[str], Iterable[dict[str, Any]]]
"""Returns the objects of a plural."""


def lister(namespace: str, api_client: Any = None) -> List:
    """Return what asks the cluster that this runs in.

    Raises
    ------
    InputError : the extra ``kubernetes`` is not installed.
    RunError : no cluster is configured here.
    """
    try:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException
    except ImportError:
        raise InputError("pool objects", *needs("kubernetes", "kubernetes")) from None
    if api_client is None:
        load_config: Any = config.load_config
        try:
            load_config()
        except ConfigException as error:
            raise RunError(f"no Kubernetes cluster is configured here: {error}") from None
    api = client.CustomObjectsApi(api_client)

    def ask(plural: str) -> Iterable[dict[str, Any]]:
        found: Any = api.list_namespaced_custom_object(
            GROUP, VERSION, namespace, plural, _request_timeout=_TIMEOUT_S
        )
        return list(found["items"])

    return ask


def objects_text(ask: List) -> str:
    """Return the objects as the gateway reads them, without what changes by itself; the same objects, the same text."""
    items: list[dict[str, Any]] = []
    for plural in PLURALS:
        for one in sorted(ask(plural), key=lambda each: str(each["metadata"]["name"])):
            kept: dict[str, Any] = {name: one[name] for name in ("apiVersion", "kind", "spec") if name in one}
            kept["metadata"] = {"name": one["metadata"]["name"]}
            items.append(kept)
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1, sort_keys=True) + "\n"


def write_if_changed(text: str, path: Path) -> bool:
    """Write a file in one step where it holds something else; returns whether it did."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return False
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return True


def gateways(processes: Path = Path("/proc")) -> list[int]:
    """Return the process ids of the gateways that this pod runs."""
    found = []
    for entry in processes.iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has gone meanwhile
                if b"serve" in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return sorted(found)


def follow(ask: List, path: Path, *, tell: Callable[[], None]) -> None:
    """Look once: write what has changed, and tell the gateway. What cannot be asked for is said and asked for again."""
    try:
        changed = write_if_changed(objects_text(ask), path)
    except Exception as error:  # ApiException, whatever urllib3 says of the way there, a full disk
        LOG.warning("%s stays as it is: %s", path, " ".join(str(error).split())[:200])
        return
    if changed:
        tell()


def _tell() -> None:
    for process in gateways():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGHUP)


def main(arguments: list[str] | None = None) -> None:
    """Write the file once, or keep it."""
    parser = argparse.ArgumentParser(prog="pool_objects", description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="the file to keep")
    parser.add_argument("--namespace", help="without it, the pod's")
    parser.add_argument("--every-s", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--once", action="store_true", help="write it and end")
    given = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    namespace = given.namespace or (_NAMESPACE.read_text().strip() if _NAMESPACE.exists() else "default")
    ask = lister(namespace)
    if given.once:
        write_if_changed(objects_text(ask), given.file)
        return
    while True:
        follow(ask, given.file, tell=_tell)
        time.sleep(given.every_s)


if __name__ == "__main__":
    main()
