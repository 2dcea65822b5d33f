"""File descriptors: how many connections the process may have, and whether it has run out.

Each request needs two, one to its client and one to its replica. So the most connections follow from what the process
may open (RLIMIT_NOFILE), and a replica is never blamed for a connection that this process could not open.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from dataclasses import replace

from sim.live.gateway.settings import Limits

LOG = logging.getLogger("tokenpools.serve")

_KEPT = 64
_KEPT_PER_UPSTREAM = 4
_EXHAUSTED = (errno.EMFILE, errno.ENFILE)


def raise_limit() -> None:
    """Take as many descriptors as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            LOG.warning("the limit of open files stays at %d: %s", soft, error)


def fitted(limits: Limits, upstreams: int) -> Limits:
    """Return limits whose connections fit into what the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits
    # Two for each connection, and one for each of those above the limit that are told so.
    most = max(1, (soft - _KEPT - _KEPT_PER_UPSTREAM * upstreams) * 10 // 21)
    if most >= limits.connections:
        return limits
    LOG.warning(
        "%d open files are allowed, so at most %d connections are taken (limits.connections is %d); raise ulimit -n",
        soft, most, limits.connections,
    )  # fmt: skip
    per_address = max(1, most * 3 // 4)
    return replace(
        limits, connections=most, connections_per_address=min(limits.connections_per_address, per_address)
    )


def exhausted(error: BaseException) -> bool:
    """Return whether this process could open nothing more; resolvers hide that behind errors of their own."""
    if not isinstance(error, OSError):
        return False
    if error.errno in _EXHAUSTED:
        return True
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as found:
        return found.errno in _EXHAUSTED
    return False
