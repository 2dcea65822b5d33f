"""The command that sends a scenario's demand to a real server."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sim.cli.app import FAILED, app, load, scenario_options

if TYPE_CHECKING:
    from sim.live.loadgen.event_hooks import Hook

_PATH = click.Path(path_type=Path)


@app.command()
@scenario_options
@click.option("--base-url", required=True, metavar="URL", help="Root of an OpenAI-compatible server.")
@click.option("--policy", metavar="NAME", help="The policy in front of the server, if the scenario has several.")
@click.option("--replication", type=click.IntRange(min=0), default=0, show_default=True, help="Which draws.")
@click.option("--model", help="Model to ask for; without it the first that the server lists.")
@click.option("--keys", type=_PATH,
              help="File of API keys by entitlement; else TOKENPOOLS_KEY_<ENTITLEMENT> or OPENAI_API_KEY.")  # fmt: skip
@click.option("--metrics-url", "metrics", multiple=True, metavar="URL", help="vLLM's metrics page, one a replica.")
@click.option("--admin-url", metavar="URL", help="Root of the gateway's admin pages; without it BASE-URL is tried.")
@click.option("--admin-token", envvar="TOKENPOOLS_ADMIN_TOKEN", show_envvar=True, help="Token for them.")
@click.option("--slots-file", type=_PATH, help="File to write the pool's slots to at the scenario's events.")
@click.option("--on-event", metavar="COMMAND", help="Command to run at them; TOKENPOOLS_EVENT, _SLOTS, ... say what.")
@click.option("--begin-at-s", type=float, help="Begin when the gateway's clock shows this; without it at once.")
@click.option("--token-ids", default="100:999", show_default=True, metavar="A:B", help="Ids to make prompts of.")
@click.option("--timeout-s", type=click.FloatRange(min=0, min_open=True), default=600.0, show_default=True)
@click.option("--out", type=_PATH, help="Result folder; without it results/<scenario>-<hash>-live.")
def replay(
    scenario: str,
    overrides: tuple[str, ...],
    seed: int | None,
    replications: int | None,
    base_url: str,
    policy: str | None,
    replication: int,
    model: str | None,
    keys: Path | None,
    metrics: tuple[str, ...],
    admin_url: str | None,
    admin_token: str | None,
    slots_file: Path | None,
    on_event: str | None,
    begin_at_s: float | None,
    token_ids: str,
    timeout_s: float,
    out: Path | None,
) -> None:
    """Send the demand of SCENARIO to a real server and write the records of a run.

    The same requests as in a simulated run of the same seed, each sent when it is due; clients come again, or lose
    patience, as the scenario says. Exit code 1 if the requests were sent too late (P99 above 5 ms), because the records
    then say as much of this machine as of the server.
    """
    from sim.analysis.summary import format_table
    from sim.experiments.select import default_folder, with_policies
    from sim.live.loadgen.api_keys import load_keys
    from sim.live.loadgen.completions_client import PromptKind, id_range
    from sim.live.loadgen.discover import discover
    from sim.live.loadgen.replay import MOST_LAG_S, Target, check_replayable, replay_live, write_live
    from sim.records.result_folder import check_output_folder

    if replications is not None:
        raise click.UsageError("A live run has one replication; choose its draws with --replication.")
    loaded = with_policies(load(scenario, overrides, seed, 1), [policy] if policy else [])
    folder = out or default_folder(scenario, loaded).with_name(f"{default_folder(scenario, loaded).name}-live")
    check_output_folder(folder)
    first, last = id_range(token_ids)
    api_keys = load_keys(keys, [e.name for e in loaded.pool.entitlements])
    hooks = _hooks(slots_file, on_event)
    found = discover(base_url, key=next(iter(api_keys.values()), None), admin_url=admin_url, token=admin_token)
    target = Target(
        base_url=base_url,
        prompts=PromptKind(model=model or found.model, first_id=first, last_id=last, seed=loaded.seed + replication),
        keys=api_keys, metrics=metrics or found.metrics, state=found.state, token=admin_token,
        hooks=hooks, set_capacity=found.set_capacity, begin_at_s=begin_at_s, timeout_s=timeout_s,
    )  # fmt: skip
    check_replayable(loaded, target)
    click.echo(f"{found.words}; {_lasts(loaded.horizon_s)}", err=True)
    run = replay_live(loaded, target, replication=replication)
    summary = write_live(loaded, [run], folder)
    click.echo(format_table(summary))
    lag = run.stats["send_lag"]
    click.echo(
        f"{lag['sent']} requests sent, late by {1e3 * lag['p50_s']:.2f} ms at P50, {1e3 * lag['p99_s']:.2f} ms at P99, "
        f"{1e3 * lag['max_s']:.1f} ms at most; wrote {folder}", err=True,
    )  # fmt: skip
    if run.stats["wrong_lengths"]:
        click.echo(
            f"warning: {run.stats['wrong_lengths']} answers had another length than was drawn; the server ignores "
            "min_tokens or ignore_eos", err=True,
        )  # fmt: skip
    if run.stats["uncounted"]:
        click.echo(
            f"error: not valid: {run.stats['uncounted']} answers without usage, and with other events than tokens were "
            "drawn; give a server that sends usage (stream_options)", err=True,
        )  # fmt: skip
    if not run.stats["send_lag"]["p99_s"] <= MOST_LAG_S:
        click.echo(
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
