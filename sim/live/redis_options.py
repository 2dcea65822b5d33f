"""How redis-py is told to send nothing that it was not asked for."""

from __future__ import annotations

import inspect


def unnamed() -> dict[str, None]:
    """Return the options by which a connection does not tell the name of its library.

    ``CLIENT SETINFO`` is a command of its own, which a narrow rule of access forbids: each connection would then leave
    two lines in Redis's log of refused commands (ACL LOG), in which nobody would see a real one.
    """
    from redis.connection import AbstractConnection

    known = inspect.signature(AbstractConnection.__init__).parameters
    return {"driver_info": None} if "driver_info" in known else {"lib_name": None, "lib_version": None}
