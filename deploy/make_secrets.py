"""Make what a shared Redis and its gateways need to know of each other: a password, a signing key and a certificate.

    python deploy/make_secrets.py FOLDER [--name HOST ...]

Writes into FOLDER, which must not be there yet and only you can look into:

users.acl              Redis's users: the gateways', with no more than they need and the hash of its password; no other
redis.crt, redis.key   what Redis shows to gateways (names: redis, tokenpools-redis, localhost and --name), for a year
metrics.token          what Prometheus shows to the gateways' pages; admin.token_sha256 of gateway.yaml is its SHA-256
secrets.env            REDIS_PASSWORD and TOKENPOOLS_STATE_KEY, for the gateways' environment

compose.yaml mounts them from deploy/compose/secrets. For Kubernetes it prints two commands. Needs openssl.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

USER = "tokenpools"
COMMANDS = {
    "connection": ("auth", "hello", "ping", "select"),
    "called": ("evalsha", "script|load", "xrange", "xread", "info"),
    "accounts": (
        "get", "hgetall", "hset", "hdel", "hexists", "incr", "lpush", "ltrim", "lrange", "smembers", "sadd", "multi",
        "exec",
    ),
    "in scripts": (
        "del", "expire", "hdel", "hexists", "hget", "hgetall", "hincrby", "hmget", "hset", "pexpire", "time", "type",
        "xadd", "xlen", "xrange", "xrevrange", "xtrim", "zadd", "zcard", "zcount", "zrangebyscore", "zrem", "zscore",
    ),
}  # fmt: skip
"""What a gateway sends, and what its scripts call, which Redis checks by the same rules."""


def fail(problem: str) -> NoReturn:
    """Say what is wrong, and stop."""
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


def rule(password: str) -> str:
    """Return what Redis lets the gateways do: the rest of ``ACL SETUSER``, and of a line of an ACL file."""
    granted = " ".join(f"+{one}" for one in dict.fromkeys(one for some in COMMANDS.values() for one in some))
    return f"{USER} on #{hashlib.sha256(password.encode()).hexdigest()} ~tokenpools:* resetchannels -@all {granted}"


def certificate(folder: Path, names: list[str]) -> None:
    """Make a certificate that is its own authority."""
    named = ",".join(f"DNS:{name}" for name in names)
    subprocess.run([
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", f"/CN={names[0]}",
        "-addext", f"subjectAltName={named}", "-keyout", str(folder / "redis.key"), "-out", str(folder / "redis.crt"),
    ], check=True, capture_output=True)  # fmt: skip
    # Redis's user in the container is not the one who made it; who may not look into the folder cannot read it.
    (folder / "redis.key").chmod(0o644)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", action="append", default=[], help="another host name of Redis")
    asked = parser.parse_args()
    folder: Path = asked.folder
    if shutil.which("openssl") is None:
        fail("no openssl here; install it")
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        fail(f"{folder} is there already, and its secrets may be in use; give another folder, or remove it")
    password, key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    certificate(folder, ["redis", "tokenpools-redis", "localhost", *asked.name])
    (folder / "users.acl").write_text(f"user default off\nuser {rule(password)}\n")
    env = folder / "secrets.env"
    env.touch(mode=0o600)
    env.write_text(f"REDIS_PASSWORD={password}\nTOKENPOOLS_STATE_KEY={key}\n")
    files = " ".join(f"--from-file={folder}/{name}" for name in ("users.acl", "redis.crt", "redis.key"))
    token = secrets.token_urlsafe(32)
    (folder / "metrics.token").write_text(token)
    (folder / "metrics.token").chmod(0o644)  # Prometheus's user in the container is another
    print(f"admin.token_sha256 for metrics: {hashlib.sha256(token.encode()).hexdigest()}")
    print(f"written: {folder}. For Kubernetes:\n"
          f"kubectl create secret generic tokenpools-redis {files}\n"
          f"kubectl create secret generic tokenpools-state --from-env-file={folder}/secrets.env")


if __name__ == "__main__":
    main()
