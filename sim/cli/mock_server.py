"""The command that serves simulated replicas; heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli import completion
from sim.cli.app import LIVE, above_zero, command
from sim.errors import InputError


@command("mock-server", panel=LIVE)
def mock_server(
    profile: Annotated[
        str,
        typer.Option("--profile", help="A shipped profile's name, or a file.", autocompletion=completion.profiles),
    ] = "h100-llama-3.1-8b",
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=64, help="One port each, from --port on.")] = 1,
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="The first; 0 for any free ones.")] = 8000,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    speed: Annotated[
        float, typer.Option("--speed", callback=above_zero, help="Simulated seconds in a second, e.g. 10.")
    ] = 1.0,
    model: Annotated[
        str | None, typer.Option("--model", help="Name to serve under; without it the profile's.")
    ] = None,
    answer_tokens: Annotated[
        float, typer.Option("--answer-tokens", min=1, help="Mean length of answers that the client does not fix.")
    ] = 200.0,
    answer_cv: Annotated[
        float, typer.Option("--answer-cv", min=0, max=100, help="Their standard deviation over their mean.")
    ] = 0.8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of those lengths.")] = 0,
    api_key: Annotated[str | None, typer.Option("--api-key", help="Asked of every client, as vLLM does.")] = None,
    slots_file: Annotated[
        Path | None,
        typer.Option("--slots-file", help="Run as many sequences at once as this file says, also when it changes."),
    ] = None,
) -> None:
    """Serve simulated replicas behind OpenAI's API, in real time: a vLLM to try things against, without a GPU.

    Chat, completions, streams, embeddings, /tokenize, /health and vLLM's /metrics; times are those of the profile.
    """
    import gc

    from sim.mock_server.app import ServerSettings
    from sim.mock_server.run import serve
    from sim.scenario.profile import load_profile
    from workloads.lengths import Lognormal

    if slots_file is not None and replicas > 1:
        raise InputError("--slots-file", f"says the slots of one replica, and there are {replicas}", "leave it out")
    loaded = load_profile(profile, file="--profile")
    settings = ServerSettings(
        profile=loaded, model=model or loaded.name, answers=Lognormal(mean=answer_tokens, cv=answer_cv), speed=speed,
        seed=seed, api_key=api_key, slots_file=slots_file,
    )  # fmt: skip
    gc.enable()
    serve(settings, replicas=replicas, host=host, port=port, say=lambda words: typer.echo(words))
