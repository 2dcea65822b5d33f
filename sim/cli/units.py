"""The command that says what a demand takes of what vendors sell; heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.app import EVIDENCE, command
from sim.errors import InputError


@command(panel=EVIDENCE)
def units(
    scenario: Annotated[
        str | None, typer.Argument(metavar="[SCENARIO]", help="A scenario, e.g. one that `tokenpools advise` wrote.")
    ] = None,
    sold: Annotated[
        list[str] | None,
        typer.Option("--sold", metavar="VENDOR/MODEL", help="A row of the price table; more than once."),
    ] = None,
    prices: Annotated[Path | None, typer.Option("--prices", help="A price table of your own.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Print the price table, to be copied and edited.")] = False,
) -> None:
    """Say what a demand takes in GPU-hours, in units that vendors sell, and in quota reservations.

    With the probability that a minute overflows what was bought. The price table is data, with source and date.
    """
    from sim.scenario.load import load_scenario, resolved
    from sim.studies.sold_units import gpu_words, minutes_of, price_table, reservation_words, shipped_text, sold_words

    if listed:
        price_table(prices)  # a user's own is checked as when it is used
        typer.echo(shipped_text() if prices is None else prices.read_text(encoding="utf-8"), nl=False)
        return
    if scenario is None:
        raise InputError("units", "no demand is named", "give a scenario, or --list for the price table")
    table = price_table(prices)
    rows = [table.unit(name) for name in sold or ()]
    loaded = load_scenario(scenario)
    minutes = minutes_of(resolved(loaded))
    typer.echo(gpu_words(table, loaded.pool.replicas, loaded.pool.profile.gpus))
    for row in rows:
        for line in sold_words(minutes, row):
            typer.echo(line)
    promised = [one.name for one in loaded.pool.entitlements if one.ttft_slo_s is not None]
    for line in reservation_words(minutes, promised):
        typer.echo(line)
