"""`tokenpools key`: keys and budgets of a gateway, in its configuration or in its store of accounts."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.app import LIVE, command, group
from sim.cli.help_pages import Group
from sim.errors import InputError, RunError

if TYPE_CHECKING:
    from sim.live.accounts.keys import KeyAdmin
    from sim.live.accounts.store import AccountStore

_SHOWN_ONCE = "the key is for the client, and nobody keeps it: this is the only time it is shown"


class _KeyGroup(Group):
    """Takes a first word that is no command for the name of a key to make: ``tokenpools key chat``."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Put ``make`` before a name."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


key = group(
    "key", panel=LIVE, cls=_KeyGroup,
    about="Make, rotate, expire and disable the keys of clients, set budgets, and see what was used.",
)

_Store = Annotated[
    str,
    typer.Option(
        "--store", metavar="STORE", envvar="TOKENPOOLS_STORE", show_envvar=False,
        help="The gateway's accounts.store: a file, or redis://HOST:PORT/0; without it TOKENPOOLS_STORE.",
    ),
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.")]
_Budgets = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="AMOUNT[/money]/PERIOD", help="E.g. 100000/day or 50/money/month; may repeat."),
]


@command(of=key)
def make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The client's name; admin for a token of the pages.")],
    entitlement: Annotated[
        str | None, typer.Option("--entitlement", help="The entitlement that it opens; without it NAME.")
    ] = None,
) -> None:
    """Make an API key: the key itself, shown this once, and the line of CONFIG that lets it in."""
    from sim.live.gateway.authentication import hashed, new_key

    if not name.strip():
        raise InputError("NAME", "is empty", "give the client's name, e.g. chat-production")
    secret = new_key()
    typer.echo(secret)
    if name == "admin" and entitlement is None:
        typer.echo(f"  token_sha256: {hashed(secret).hex()}")
        said = "the second goes under admin: (or under accounts: api:) in CONFIG"
    else:
        line = {"name": name, "entitlement": entitlement or name, "sha256": hashed(secret).hex()}
        typer.echo(f"  - {json.dumps(line)}")
        said = "the second goes under keys: in CONFIG"
    typer.echo(f"the first line is for the client, and nobody keeps it; {said}", err=True)


@command(of=key)
def create(
    name: _Name,
    store: _Store,
    entitlement: Annotated[
        str | None, typer.Option("--entitlement", help="The entitlement that it opens; without it NAME.")
    ] = None,
    days: Annotated[
        float | None, typer.Option("--days", min=0, help="Days until it expires; without it never.")
    ] = None,
    budget: _Budgets = None,
) -> None:
    """Make a key in the store, and show it this once."""
    with _administered(store, may_make=True) as (admin, _):
        expires_s = None if days is None else time.time() + days * 86_400
        secret = admin.create(name, entitlement or name, expires_s=expires_s, budgets=_budgets(budget))
    typer.echo(secret)
    typer.echo(_SHOWN_ONCE, err=True)


@command(of=key)
def rotate(
    name: _Name,
    store: _Store,
    grace_s: Annotated[float, typer.Option("--grace-s", min=0, help="Seconds that the old key still opens.")] = 0.0,
) -> None:
    """Give NAME a new key, and show it this once."""
    with _administered(store) as (admin, _):
        secret = admin.rotate(name, grace_s)
    typer.echo(secret)
    typer.echo(_SHOWN_ONCE, err=True)


@command(of=key)
def expire(
    name: _Name,
    store: _Store,
    days: Annotated[float, typer.Option("--days", min=0, help="Days from now.")] = 0.0,
    never: Annotated[bool, typer.Option("--never", help="Let it never expire.")] = False,
) -> None:
    """Say when NAME expires; without an option, now."""
    with _administered(store) as (admin, _):
        admin.expire(name, None if never else time.time() + days * 86_400)
    typer.echo(f"{name} {'never expires' if never else 'expires' + (' now' if not days else f' in {days:g} days')}")


@command(of=key)
def disable(name: _Name, store: _Store) -> None:
    """Let NAME in no more, until it is enabled."""
    with _administered(store) as (admin, _):
        admin.disable(name)
    typer.echo(f"{name} is disabled")


@command(of=key)
def enable(name: _Name, store: _Store) -> None:
    """Let NAME in again."""
    with _administered(store) as (admin, _):
        admin.disable(name, disabled=False)
    typer.echo(f"{name} is enabled")


@command("list", of=key)
def list_keys(store: _Store) -> None:
    """List the keys in the store, a line of JSON each; never the keys themselves."""
    from sim.live.accounts.keys import public

    with _administered(store) as (_, kept):
        for one in kept.all_keys():
            typer.echo(json.dumps(public(one)))


@command(of=key)
def budget(
    node: Annotated[str, typer.Argument(metavar="NODE", help="group/NAME, entitlement/NAME or key/NAME.")],
    store: _Store,
    budgets: _Budgets = None,
    configured: Annotated[bool, typer.Option("--configured", help="Go back to what CONFIG says.")] = False,
) -> None:
    """Set the budgets of NODE in the place of CONFIG's; the gateway goes by them within seconds."""
    if configured == bool(budgets):
        raise InputError("--budget", "nothing was given" if not configured else "beside --configured", "give one")
    with _administered(store, may_make=True) as (admin, _):
        admin.set_budgets(node, None if configured else _budgets(budgets))
    typer.echo(f"{node}: set")


@command(of=key)
def usage(
    store: _Store,
    since: Annotated[
        str, typer.Option("--since", metavar="DAY", help="The first day, e.g. 2026-11-01.")
    ] = "0000-00-00",
    until: Annotated[str, typer.Option("--until", metavar="DAY", help="The last day.")] = "9999-12-31",
) -> None:
    """Show what each key used on each day (UTC): requests, tokens and money, a line of JSON each."""
    with _administered(store) as (_, kept):
        for row, use in kept.use(since, until).items():
            typer.echo(json.dumps({**row._asdict(), **use._asdict()}))


@command(of=key)
def audit(
    store: _Store,
    most: Annotated[int, typer.Option("--most", min=1, max=10_000, help="How many entries.")] = 100,
) -> None:
    """Show who changed what, the latest first, a line of JSON each."""
    with _administered(store) as (_, kept):
        for one in kept.audit(most):
            typer.echo(json.dumps(one._asdict()))


@contextmanager
def _administered(where: str, *, may_make: bool = False) -> Iterator[tuple[KeyAdmin, AccountStore]]:
    """Yield what changes a store, and the store."""
    from sim.live.accounts.keys import KeyAdmin
    from sim.live.accounts.store import StoreError, is_missing, open_store

    if not may_make and is_missing(where):
        raise InputError("--store", f"there is no {where}", "give the gateway's accounts.store")
    store = open_store(where)
    try:
        yield KeyAdmin(store, f"cli {_user()}"), store
    except StoreError as error:
        raise RunError(f"the store is out of reach: {error}") from None
    finally:
        store.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "?"


def _budgets(given: list[str] | None) -> list[dict[str, Any]]:
    found = []
    for text in given or []:
        amount, *rest = text.split("/")
        unit = "money" if rest[:1] == ["money"] else "tokens"
        per = rest[-1] if rest else ""
        try:
            limit = float(amount)
        except ValueError:
            limit = 0.0
        if per not in ("day", "month") or len(rest) > 2 or (len(rest) == 2 and rest[0] not in ("money", "tokens")):
            raise InputError("--budget", f"{text!r} is none", "give e.g. 100000/day or 50/money/month")
        if not limit > 0:
            raise InputError("--budget", f"{amount!r} is no amount", "give a number above 0, e.g. 100000/day")
        found.append({"unit": unit, "per": per, "limit": limit})
    return found
