"""Commands that judge a result: metrics, shadow verdicts, and why a request was let in or turned away."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from sim.cli import completion, tables
from sim.cli.app import JUDGING, TRAFFIC, AsCsv, Jobs, ResultFolder, Wide, above_zero, command
from sim.errors import InputError


@command(panel=JUDGING)
def metrics(
    result: ResultFolder,
    alone: Annotated[
        bool, typer.Option("--alone", help="Also run each tenant alone, for the isolation index.")
    ] = False,
    refusals: Annotated[
        int | None,
        typer.Option("--refusals", min=1, metavar="N", help="Judge up to N refusals of each run, by letting each in."),
    ] = None,
    window_s: Annotated[
        float, typer.Option("--window", callback=above_zero, help="Seconds of a window of the windowed metrics.")
    ] = 30.0,
    convergence: Annotated[
        bool, typer.Option("--convergence", help="Print how service came to its fair share after each change.")
    ] = False,
    jobs: Jobs = 1,
    as_csv: AsCsv = False,
    wide: Wide = False,
) -> None:
    """Write RESULT/metrics.csv: fairness, service, isolation, refusals, waste and cost; docs/metrics.md defines each.

    Prints a table of everybody by policy and one by tenant. The metrics read the records alone; --alone and --refusals
    simulate again, on the same draws.
    """
    from sim.judging.judge import judge

    found = judge(result, alone=alone, refusals=refusals, window_s=window_s, convergence=convergence, jobs=jobs)
    if as_csv:
        typer.echo(found.csv(), nl=False)
    else:
        for i, table in enumerate(found.tables()):
            if i:
                typer.echo()
            tables.show(table, wide=wide)
    if convergence and not found.changes:
        typer.echo("--convergence: nothing changed; no event, and no workload or entitlement that begins or ends",
                   err=True)  # fmt: skip
    typer.echo(f"wrote {found.path}", err=True)


@command(panel=JUDGING)
def explain(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="A result folder, or a gateway's recording.")],
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="As in requests.parquet.")],
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", help="Under this policy; without it, the first that turned the request away.",
            autocompletion=completion.policies,
        ),
    ] = None,
    replication: Annotated[int | None, typer.Option("--replication", min=0, help="Of this replication.")] = None,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", min=1, help="This attempt; without it, the last that was turned away."),
    ] = None,
) -> None:  # fmt: skip
    """Say why REQUEST_ID of RESULT was let in, held or turned away, and what would have let it in.

    The run is repeated up to that instant, and the gateway's books are read there. RESULT may also be the file of
    events that a live gateway recorded.
    """
    from sim.judging.explain import explain as run_again
    from sim.judging.explain import explain_recording
    from sim.judging.explain_text import in_words

    if result.is_file():
        typer.echo(in_words(explain_recording(result, request_id, attempt=attempt)))
        return
    typer.echo(in_words(run_again(result, request_id, policy=policy, replication=replication, attempt=attempt)))


@command(panel=JUDGING)
def shadow(
    result: Annotated[
        str, typer.Argument(
            metavar="RESULT|URL|CONFIG",
            help="A result, or a running gateway's admin pages; with --log a scenario or a gateway's CONFIG.",
        ),
    ],
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="Put the requests of a log, or a trace, to CONFIG's.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="The log's format; without it, it is recognised.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="TENANT=ENTITLEMENT", help="Whose a tenant of the log is; may repeat."),
    ] = None,
    admin_token: Annotated[
        str | None, typer.Option("--admin-token", envvar="TOKENPOOLS_ADMIN_TOKEN", help="Token for a gateway's pages.")
    ] = None,
    as_csv: AsCsv = False,
) -> None:
    """Say how the policies that watched RESULT would have decided: agreement, and would-be refusals by tenant.

    With a URL: what those that watch a running gateway would have turned away since it began. With --log: what
    CONFIG's policies would have turned away of a log's requests (LiteLLM, vLLM, this gateway, tables).
    """
    from sim.analysis.shadows import agreement, by_reason, by_tenant, in_words, of_gateway
    from sim.records.result_folder import read_manifest, read_records, rows_csv

    if log is None and result.startswith(("http://", "https://")):
        from sim.live.loadgen.discover import watching

        policy, rows = watching(result, token=admin_token)
        plain = [{**row, "reasons": " ".join(row["reasons"])} for row in rows]
        typer.echo(rows_csv(plain) if as_csv else of_gateway(policy, rows), nl=not as_csv)
        return
    if log is not None:
        from sim.experiments.shadow_log import shadow_log

        found = shadow_log(Path(result), log, form=form, names=_names(name or ()))
        table = found.result.shadows
        assert table is not None
        if not as_csv:
            for note in found.notes():
                typer.echo(note, err=True)
    elif form is not None or name:
        raise InputError("--format, --name", "given without --log", "give the log, or leave them out")
    else:
        manifest = read_manifest(Path(result))
        if not manifest["scenario"].get("shadow"):
            raise InputError(result, "was watched by no policy", "run it again with shadow: [POLICY, ...] in it")
        table = read_records(Path(result), manifest, "shadows")
    if as_csv:
        typer.echo(rows_csv(by_tenant(table)), nl=False)
        return
    typer.echo(in_words(agreement(table), by_tenant(table)))
    for line in by_reason(table):
        typer.echo(line)


def _names(given: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in given:
        tenant, _, entitlement = text.rpartition("=")
        if not tenant or not entitlement:
            raise InputError("--name", f"{text!r} is none", "give TENANT=ENTITLEMENT")
        found[tenant] = entitlement
    return found


@command(panel=JUDGING)
def ui(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="A folder of results.")] = Path("results"),
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page, in FOLDER; without it index.html there.")
    ] = None,
) -> None:
    """Write a page over all results in FOLDER: what was run, how policies did, links to reports and figures."""
    from sim.analysis.results_index import write_index

    path, number = write_index(folder, out)
    typer.echo(f"{path}: {number} results; open it in a browser")


@command("hardware-check", panel=TRAFFIC)
def hardware_check(
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder that holds lmsys-arena-vtc; without it, TOKENPOOLS_DATA's.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit the replica to the measured FCFS run anew; without it, as shipped.")
    ] = False,
    tenants: Annotated[bool, typer.Option("--tenants", help="Also print every tenant.")] = False,
    arms: Annotated[
        bool, typer.Option("--arms", help="Instead: 15 arms of tenants in front of real vLLM (kvwarden-vllm-0.19).")
    ] = False,
    silicon: Annotated[
        bool, typer.Option("--silicon", help="Instead: profiles of `calibrate aiconfigurator` on its silicon sample.")
    ] = False,
    silicon_fit: Annotated[
        bool, typer.Option("--silicon-fit", help="Instead: profiles fitted to two thirds of it, on the last third.")
    ] = False,
    light_load: Annotated[
        bool, typer.Option("--light-load", help="Instead: first tokens under little load, and what S-LoRA's loop adds.")
    ] = False,
) -> None:
    """Replay the 27-tenant Arena trace under FCFS, VTC and request limits, beside what a real GPU did.

    Prints refusals and times to first token, measured and simulated, by policy. With `--arms` the profile of an H100 is
    fitted to its closed loops alone, and predicts tenants behind limiters on H100 and A100; then the busy arms of the
    A100 again, after one with little load has shown its host.
    """
    if arms:
        from sim.studies.hardware_check_light_arm import check_after_light_arms
        from sim.studies.hardware_check_tenants import arms_table, check_tenants, data_folder, sweep_profile

        swept = sweep_profile(data_folder(data))
        tables.show_markdown(arms_table(check_tenants(data, swept) + check_after_light_arms(data, swept)))
        return
    if silicon:
        from sim.studies.silicon_sample import check_silicon, silicon_table

        tables.show_markdown(silicon_table(check_silicon(data)))
        return
    if silicon_fit:
        from sim.studies.silicon_fit import held_out_table

        tables.show_markdown(held_out_table(data))
        return
    if light_load:
        from sim.studies.hardware_check import light_load as first_tokens

        tables.show_markdown(first_tokens(data))
        return
    from sim.studies.hardware_check import check, table, tenant_table

    found = check(data, fit=fit)
    tables.show_markdown(table(found))
    if tenants:
        tables.show_markdown("\n" + tenant_table(found))
    typer.echo(f"{found.profile.name}: {found.profile.error}", err=True)
