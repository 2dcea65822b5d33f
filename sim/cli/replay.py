"""The command that sends a scenario's demand to a real server."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli import completion, tables
from sim.cli.app import (
    FAILED,
    LIVE,
    Overrides,
    Overwrite,
    Replications,
    ScenarioRef,
    Seed,
    Wide,
    above_zero,
    command,
    load,
)

if TYPE_CHECKING:
    from sim.live.loadgen.event_hooks import Hook


@command(panel=LIVE)
def replay(
    scenario: ScenarioRef,
    base_url: Annotated[
        str, typer.Option("--base-url", metavar="URL", help="Root of an OpenAI-compatible server.")
    ],
    overrides: Overrides = None,
    seed: Seed = None,
    replications: Replications = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", metavar="NAME", autocompletion=completion.policies,
            help="The policy in front of the server; without it, what the gateway says.",
        ),
    ] = None,
    replication: Annotated[int, typer.Option("--replication", min=0, help="Which draws.")] = 0,
    model: Annotated[
        str | None, typer.Option("--model", help="Model to ask for; without it the first that the server lists.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys", help="File of API keys by entitlement; else TOKENPOOLS_KEY_<ENTITLEMENT> or OPENAI_API_KEY."
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics-url", metavar="URL", help="vLLM's metrics page, one a replica."),
    ] = None,
    admin_url: Annotated[
        str | None,
        typer.Option(
            "--admin-url", metavar="URL", help="Root of the gateway's admin pages; without it BASE-URL is tried."
        ),
    ] = None,
    admin_token: Annotated[
        str | None, typer.Option("--admin-token", envvar="TOKENPOOLS_ADMIN_TOKEN", help="Token for them.")
    ] = None,
    slots_file: Annotated[
        Path | None,
        typer.Option("--slots-file", help="File to write the pool's slots to at the scenario's events."),
    ] = None,
    on_event: Annotated[
        str | None,
        typer.Option(
            "--on-event", metavar="COMMAND", help="Command to run at them; TOKENPOOLS_EVENT, _SLOTS, ... say what."
        ),
    ] = None,
    begin_at_s: Annotated[
        float | None,
        typer.Option("--begin-at-s", help="Begin when the gateway's clock shows this; without it at once."),
    ] = None,
    token_ids: Annotated[
        str, typer.Option("--token-ids", metavar="A:B", help="Ids to make prompts of.")
    ] = "100:999",
    timeout_s: Annotated[float, typer.Option("--timeout-s", callback=above_zero)] = 600.0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Result folder; without it results/<scenario>-<hash>-live.")
    ] = None,
    overwrite: Overwrite = False,
    wide: Wide = False,
) -> None:  # fmt: skip
    """Send the demand of SCENARIO to a real server and write the records of a run.

    The same requests as in a simulated run of the same seed, each sent when it is due; clients come again, or lose
    patience, as the scenario says. Exit code 1 if the requests were sent too late (P99 above 5 ms), because the records
    then say as much of this machine as of the server.
    """
    from sim.experiments.select import default_folder, with_policies
    from sim.live.loadgen.api_keys import load_keys
    from sim.live.loadgen.completions_client import PromptKind, id_range
    from sim.live.loadgen.discover import discover
    from sim.live.loadgen.replay import MOST_LAG_S, Target, check_replayable, in_front, replay_live, write_live
    from sim.records.result_folder import check_output_folder, check_replaceable, replacing

    if replications is not None:
        raise typer.BadParameter("a live run has one replication; choose its draws with --replication.")
    loaded = with_policies(load(scenario, overrides, seed, 1), [policy] if policy else [])
    first, last = id_range(token_ids)
    api_keys = load_keys(keys, [e.name for e in loaded.pool.entitlements])
    hooks = _hooks(slots_file, on_event)
    if out is not None:
        check_replaceable(out) if overwrite else check_output_folder(out)
    found = discover(base_url, key=next(iter(api_keys.values()), None), admin_url=admin_url, token=admin_token)
    named = [one.name for one in loaded.policies]
    loaded = loaded if policy else in_front(loaded, found.policy)
    folder = out or default_folder(scenario, loaded).with_name(f"{default_folder(scenario, loaded).name}-live")
    check_replaceable(folder) if overwrite else check_output_folder(folder)
    target = Target(
        base_url=base_url,
        prompts=PromptKind(model=model or found.model, first_id=first, last_id=last, seed=loaded.seed + replication),
        keys=api_keys, metrics=tuple(metrics or ()) or found.metrics, state=found.state, token=admin_token,
        hooks=hooks, set_capacity=found.set_capacity, begin_at_s=begin_at_s, timeout_s=timeout_s,
    )  # fmt: skip
    check_replayable(loaded, target)
    typer.echo(f"{found.words}; {_lasts(loaded.horizon_s)}", err=True)
    if found.policy is not None and named != [found.policy]:
        of_scenario = f"{'--policy' if policy else 'the scenario'} names {', '.join(named)}"
        said = loaded.policies[0].name
        typer.echo(f"the gateway acts by {found.policy}, {of_scenario}; the records say {said}", err=True)
    run = replay_live(loaded, target, replication=replication)
    with replacing(folder, overwrite) as place:
        summary = write_live(loaded, [run], place)
    tables.show_summary(summary, wide=wide)
    lag = run.stats["send_lag"]
    typer.echo(
        f"{lag['sent']} requests sent, late by {1e3 * lag['p50_s']:.2f} ms at P50, {1e3 * lag['p99_s']:.2f} ms at P99, "
        f"{1e3 * lag['max_s']:.1f} ms at most; wrote {folder}", err=True,
    )  # fmt: skip
    if run.stats["wrong_lengths"]:
        typer.echo(
            f"warning: {run.stats['wrong_lengths']} answers had another length than was drawn; the server ignores "
            "min_tokens or ignore_eos", err=True,
        )  # fmt: skip
    if run.stats["uncounted"]:
        typer.echo(
            f"error: not valid: {run.stats['uncounted']} answers without usage, and with other events than tokens were "
            "drawn; give a server that sends usage (stream_options)", err=True,
        )  # fmt: skip
    if not run.stats["send_lag"]["p99_s"] <= MOST_LAG_S:
        typer.echo(
            f"error: not valid: P99 above {1e3 * MOST_LAG_S:g} ms; give this process more of the machine, or ask for "
            "less", err=True,
        )  # fmt: skip
    if not run.valid:
        sys.exit(FAILED)


def _lasts(horizon_s: float | None) -> str:
    return "runs until the last answer" if horizon_s is None else f"runs for {horizon_s:g} s"


def _hooks(slots_file: Path | None, on_event: str | None) -> Sequence[Hook]:
    from sim.live.loadgen.event_hooks import Command, SlotsFile

    found: list[Hook] = []
    if slots_file is not None:
        found.append(SlotsFile(slots_file))
    if on_event is not None:
        found.append(Command(shlex.split(on_event)))
    return found
