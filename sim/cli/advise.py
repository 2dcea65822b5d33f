"""The command from demand to limits; heavy imports wait until it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli import completion
from sim.cli.app import EVIDENCE, FAILED, Jobs, Overwrite, command
from sim.errors import InputError

if TYPE_CHECKING:
    from sim.studies.advise.demand import Tree
    from sim.studies.advise.model import Objective

_SURVEY_RUNS = 150


@command(panel=EVIDENCE)
def advise(
    demand: Annotated[
        list[str], typer.Argument(metavar="DEMAND...", help="Logs or traces, by path or name, or one scenario."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the advice and its runs.")],
    objectives: Annotated[
        list[str] | None,
        typer.Option(
            "--objective", metavar="NAME=SECONDS[:CLASS]",
            help="Time to first token that an entitlement is promised; more than once. Others are spot.",
        ),
    ] = None,
    replicas: Annotated[
        str | None, typer.Option("--replicas", metavar="N or LOW..HIGH", help="Without it, a scenario's own, or 1..8.")
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="Of a replica, for logs and traces.", autocompletion=completion.profiles)
    ] = "h100-llama-3.1-8b",
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", metavar="NAME", help="Policies to search, or all; without it token-pool, rate-limit and none.",
            autocompletion=completion.policies,
        ),
    ] = None,
    target: Annotated[
        float, typer.Option("--target", min=0.01, max=1, help="Share of requests that must meet their objective.")
    ] = 0.95,
    share: Annotated[float, typer.Option("--share", min=0.01, max=0.99, help="Share of draws that must hold.")] = 0.9,
    confidence: Annotated[float, typer.Option("--confidence", min=0.5, max=0.999, help="Of that share.")] = 0.9,
    rest: Annotated[
        float,
        typer.Option("--rest", min=0, max=1, help="Share of requests without an objective to answer, if it can be."),
    ] = 0.8,
    draws: Annotated[int, typer.Option("--draws", min=2, help="Of the search.")] = 4,
    check_draws: Annotated[int, typer.Option("--check-draws", min=5, help="Fresh ones, at 1.0x and at 1.2x.")] = 30,
    window_s: Annotated[float, typer.Option("--window-s", min=10, help="Of a trace; its busiest.")] = 300.0,
    from_s: Annotated[float | None, typer.Option("--from-s", min=0, help="Or the one that begins here.")] = None,
    format_: Annotated[str | None, typer.Option("--format", metavar="NAME", help="Of the traces.")] = None,
    upstreams: Annotated[
        list[str] | None, typer.Option("--upstream", metavar="URL", help="A server; without it ports 8000, 8001, ...")
    ] = None,
    sold: Annotated[
        list[str] | None,
        typer.Option("--sold", metavar="VENDOR/MODEL", help="Also in units of this row of the price table."),
    ] = None,
    prices: Annotated[Path | None, typer.Option("--prices", help="A price table of your own.")] = None,
    survey: Annotated[
        int | None,
        typer.Option(
            "--survey", metavar="RUNS", min=0,
            help="Runs to spend on trying every other policy; 150 without --policy, none with it.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws.")] = 0,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
) -> None:
    """Find classes, baselines and limits that hold for a demand, and write a scenario and a gateway's configuration.

    DEMAND is searched with the simulator for each policy, checked on fresh draws at 1.0x and 1.2x, and stepped back
    where it fails. Exit code 1 if the best answer does not hold on fresh draws.
    """
    from sim.experiments.executors import Executor
    from sim.extras import require
    from sim.records.result_folder import replacing
    from sim.scenario import plugins
    from sim.studies.advise.advise import POLICIES
    from sim.studies.advise.advise import advise as search
    from sim.studies.advise.files import FILES, report_text, written
    from sim.studies.advise.model import Terms
    from sim.studies.sold_units import gpu_words, minutes_of, price_table, reservation_words, sold_words

    require("scipy", "advice")
    table = price_table(prices)
    rows = [table.unit(name) for name in sold or ()]
    asked = [_objective(text) for text in objectives or ()]
    tree = _tree(demand, asked, profile, window_s, format_, from_s, seed)
    # A demand of less than a minute has no minutes to sell, which matters only to who asks for units.
    minutes = minutes_of(tree) if rows or (tree["horizon_s"] or 0.0) >= 60 else None
    low, high = _range(replicas, tree, is_scenario=_is_scenario(demand))
    least = _least_draws(share, confidence)
    if check_draws < least:
        problem = f"{check_draws} draws cannot show {share:.0%} with {confidence:.0%} confidence, if all of them hold"
        raise InputError("--check-draws", problem, f"give at least {least}, or a lower --share")
    terms = Terms(
        target=target, share=share, confidence=confidence, search_draws=draws, check_draws=check_draws,
        low_replicas=low, high_replicas=high, rest=rest,
    )  # fmt: skip
    chosen = tuple(policies or POLICIES)
    if chosen == ("all",):
        chosen = tuple(plugins.POLICY_KINDS)
    for name in chosen:
        plugins.find("policies", name)
        if name not in plugins.POLICY_KINDS:
            from sim.scenario.validation_errors import suggestion

            raise InputError(f"--policy {name}", "unknown policy", suggestion(name, plugins.POLICY_KINDS))
    given = {one["name"]: one for one in tree["policies"] if one["name"] in chosen} if _is_scenario(demand) else {}
    there = next((name for name in FILES if (out / name).exists()), None)
    if there is not None and not overwrite:
        raise InputError(str(out / there), "is there already", "name another --out, or give --overwrite")
    with replacing(out, overwrite) as place:
        advice = search(
            tree, asked, terms, place / "runs", policies=chosen, given=given,
            survey_runs=(0 if policies else _SURVEY_RUNS) if survey is None else survey, executor=Executor(jobs=jobs),
            say=lambda words: typer.echo(words, err=True),
        )  # fmt: skip
        assert advice.best.setting is not None
        money = [gpu_words(table, advice.best.setting.replicas, int(tree["pool"]["profile"]["gpus"]))]
        if minutes is not None:
            money += [line for row in rows for line in sold_words(minutes, row)]
            money += reservation_words(minutes, list(advice.baselines))
        files = written(advice, terms, place, upstreams=upstreams or (), money=money)
    typer.echo(report_text(advice, terms, money))
    typer.echo(f"wrote {', '.join(str(out / file.name) for file in files)}", err=True)
    if not advice.best.holds:
        sys.exit(FAILED)


def _is_scenario(refs: list[str]) -> bool:
    from sim.scenario.load import shipped_scenarios

    return len(refs) == 1 and (refs[0].endswith((".yaml", ".yml")) or refs[0] in shipped_scenarios())


def _tree(
    refs: list[str], asked: list[Objective], profile: str, window_s: float, format_: str | None, from_s: float | None,
    seed: int,
) -> Tree:  # fmt: skip
    from sim.scenario.load import load_scenario
    from sim.scenario.profile import load_profile
    from sim.studies.advise.demand import from_scenario, from_traces

    if _is_scenario(refs):
        extra = [f"seed={seed}"] if seed else []
        return from_scenario(load_scenario(refs[0], overrides=extra), asked)
    return from_traces(
        refs, asked, load_profile(profile, file="--profile"), window_s=window_s, format_=format_, from_s=from_s,
        seed=seed,
    )  # fmt: skip


def _objective(text: str) -> Objective:
    from policies.api import ServiceClass
    from sim.studies.advise.model import Objective

    fix = "give NAME=SECONDS, e.g. chat=1.0, or NAME=SECONDS:CLASS with elastic, guaranteed or dedicated"
    name, equals, rest = text.rpartition("=")
    seconds, colon, kind = rest.partition(":")
    try:
        ttft_s = float(seconds)
        service_class = ServiceClass(kind) if colon else None
    except ValueError:
        raise InputError(f"--objective {text!r}", "is none", fix) from None
    if not equals or not name or not 0 < ttft_s < float("inf"):
        raise InputError(f"--objective {text!r}", "is none", fix)
    if service_class in (ServiceClass.SPOT, ServiceClass.PREEMPTIBLE):
        raise InputError(f"--objective {text!r}", f"a {service_class} entitlement is promised nothing", fix)
    return Objective(name, ttft_s, service_class)


def _range(text: str | None, tree: Tree, *, is_scenario: bool) -> tuple[int, int]:
    if text is None:
        own = int(tree["pool"]["replicas"])
        return (own, own) if is_scenario else (1, 8)
    low, dots, high = text.partition("..")
    try:
        found = int(low), int(high if dots else low)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1] <= 10_000:
        raise InputError(f"--replicas {text!r}", "is no number of replicas", "give e.g. 2, or 1..8")
    return found


def _least_draws(share: float, confidence: float) -> int:
    """Return how many draws show a share if all of them hold: the least n with share^n <= 1 - confidence."""
    import math

    return math.ceil(math.log(1 - confidence) / math.log(share) - 1e-9)
