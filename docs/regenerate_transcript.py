"""Walk an operator's whole path on two public traces, and write docs/transcript.md: what was typed and what came out.

From the repository: ``make transcript``. It clones the repository, installs it as README says, and runs every command
there, on mock servers; ports 8000, 8001, 8080 and 9090 must be free, and TOKENPOOLS_DATA names the traces. Exit code 1
if something that the page claims did not come true, 2 if a command failed. About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE / "transcript.md"
GATEWAY, ADMIN = "http://127.0.0.1:8080", "http://127.0.0.1:9090"
COPY_S, EDIT_S, WORDS_PER_S, ROW_S = 20.0, 60.0, 200 / 60, 1.0
"""A person's seconds to copy and adapt a command and to edit a file, their reading speed, and what a row of numbers
takes. [choice]"""
REPLAY_S = 120
_STARTS_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one walk is about: whose demand, what is promised, on what."""

    name: str
    title: str
    refs: Sequence[str]
    objectives: Sequence[str]
    profile: str
    replicas: int
    found: str
    loses_a_replica: bool = False


@dataclass(slots=True)
class Step:
    """A command that was run: what it printed, how long it took, and what a person does meanwhile and afterwards."""

    words: str
    command: str
    output: str
    machine_s: float
    person_s: float


@dataclass(slots=True)
class Walk:
    """One walk: its steps, what was checked, and the servers that it started."""

    folder: Path
    path: str
    steps: list[Step] = field(default_factory=list)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    load: tuple[float, float] = field(default_factory=lambda: (os.getloadavg()[0], 0.0))

    def run(self, words: str, command: str, *, lines: int = 12, fails: Sequence[int] = (0,)) -> str:
        """Run a command as a person would type it, and keep what it printed."""
        began_s = time.monotonic()
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], cwd=self.folder, env=self._environment(), capture_output=True,
            text=True,
        )  # fmt: skip
        took_s = time.monotonic() - began_s
        printed = done.stdout + done.stderr
        _say(f"[{took_s:6.1f} s] {command}")
        if done.returncode not in fails:
            sys.exit(f"{command}: exit code {done.returncode}\n{printed[-3000:]}")
        self.keep(words, command, printed, took_s, lines)
        return printed

    def keep(self, words: str, command: str, printed: str, took_s: float, lines: int, edits: int = 0) -> None:
        """Keep a step; of what it printed a person reads what is shown."""
        shown = _shown(printed, lines)
        person_s = COPY_S + EDIT_S * edits + _reads_s(shown)
        self.steps.append(Step(words, command, shown, took_s, person_s))

    def begin(self, words: str, command: str, log: str, ready: str) -> None:
        """Start a server in a terminal of its own, and wait until a page of it answers."""
        began_s = time.monotonic()
        with (self.folder / log).open("wb") as out:
            self.servers[log] = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, env=self._environment(), stdout=out,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        while not _answers(ready):
            if self.servers[log].poll() is not None or time.monotonic() > began_s + _STARTS_WITHIN_S:
                sys.exit(f"{command}: did not start\n{(self.folder / log).read_text()[-2000:]}")
            time.sleep(0.05)
        took_s = time.monotonic() - began_s
        _say(f"[{took_s:6.1f} s] {command}")
        self.keep(words, f"{command} > {log} 2>&1 &", (self.folder / log).read_text(), took_s, 8)

    def edit(self, words: str, name: str, change: Callable[[str], str]) -> None:
        """Edit a file, and show which lines changed."""
        place = self.folder / name
        before = place.read_text().splitlines()
        place.write_text(change(place.read_text()))
        after = place.read_text().splitlines()
        shown = [f"- {line}" for line in before if line not in after]
        shown += [f"+ {line}" for line in after if line not in before]
        self.keep(words, f"$EDITOR {name}", "\n".join(shown), 0.0, 20, edits=1)

    def check(self, claim: str, held: bool, seen: str) -> None:
        """Take note of whether something that the page claims came true."""
        _say(f"{'   ok' if held else 'FAILS'}: {claim}: {seen}")
        self.checks.append((claim, held, seen))

    def stop(self, log: str) -> None:
        """End one of its own servers, as Ctrl-C in its terminal would."""
        server = self.servers.pop(log, None)
        if server is not None:
            server.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()

    def _environment(self) -> dict[str, str]:
        return os.environ | {"PATH": self.path, "COLUMNS": "118", "NO_COLOR": "1"}


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def _shown(printed: str, lines: int) -> str:
    text = printed.replace(os.environ.get("TOKENPOOLS_DATA", "\0"), "$TOKENPOOLS_DATA").rstrip()
    found = [line if len(line) <= 400 else f"{line[:400]} ..." for line in text.splitlines()]
    if len(found) > lines:
        found = [*found[: lines - 6], f"... {len(found) - lines + 1} more lines ...", *found[-5:]]
    return "\n".join(found)


def _reads_s(shown: str) -> float:
    """Return how long a person looks at what was printed: row by row where a line is numbers, else word by word."""
    total_s = 0.0
    for line in shown.splitlines():
        words = [word for word in line.split() if re.search(r"[a-z]{2}", word)]
        numbers = [word for word in line.split() if re.search(r"\d", word)]
        is_row = len(numbers) >= len(words) or line.startswith(("|", "{", "tokenpools_"))
        total_s += ROW_S if is_row else len(words) / WORDS_PER_S
    return total_s


def _summary(folder: Path, tenant: str) -> dict[str, str]:
    """Return a tenant's row of a result's summary."""
    import csv

    with (folder / "summary.csv").open(newline="") as rows:
        return next(row for row in csv.DictReader(rows) if row["tenant"] == tenant)


def install(walk: Walk, repository: Path) -> None:
    """Clone the repository and install it as README says."""
    walk.run("The repository, and what it needs.", f"git clone --quiet {repository} clone")
    walk.steps[-1].command = "git clone --quiet URL clone"
    walk.run("", "cd clone && make --silent install 2>&1 | grep -v WARNING; .venv/bin/tokenpools --version")
    walk.steps[-1].command = "cd clone && make install && . .venv/bin/activate"


def walk_trace(walk: Walk, one: Trace) -> None:
    """Walk from the trace to limits that are enforced."""
    tenants = [text.partition("=")[0] for text in one.objectives]
    for ref in one.refs:
        walk.run("What is the demand like?", f"tokenpools trace inspect {ref}", lines=14)
    objectives = " ".join(f"--objective {text}" for text in one.objectives)
    walk.run(
        "What limits hold? The search takes a while; the person has a coffee.",
        f"tokenpools advise {' '.join(one.refs)} {objectives} --profile {one.profile} --replicas 1..4 --out advice "
        "> advice.txt 2> advice.log; grep -v '| spot |' advice.txt", lines=40,
    )  # fmt: skip
    said = json.loads((walk.folder / "advice" / "advice.json").read_text())
    replicas, policy = said["best"]["setting"]["replicas"], said["best"]["policy"]
    stated = min(check["at_least"] for check in said["best"]["checks"])
    walk.check("advice holds on fresh draws", stated >= said["terms"]["share"], f"in at least {stated:.0%} of draws")
    walk.check("replicas as in the last run", replicas == one.replicas, f"{replicas}")
    walk.run("Is what it wrote in order? Scenario and gateway.", "tokenpools validate advice/scenario.yaml", lines=14)
    walk.run("", "tokenpools serve advice/gateway.yaml --check")
    for number in range(replicas):
        walk.begin(
            "Servers to try it with; each is a replica, in a terminal of its own." if not number else "",
            f"tokenpools mock-server --profile {one.profile} --port {8000 + number}", f"replica-{number}.log",
            f"http://127.0.0.1:{8000 + number}/health",
        )  # fmt: skip
    told = (walk.folder / "replica-0.log").read_text()
    measure = re.search(r"tokenpools calibrate .*", told)
    assert measure is not None
    walk.run(
        "Do they take the time that their profile says? The command is the server's own; the last line is the error.",
        f"{measure[0].replace('--out found.yaml', f'--out {one.found}')} 2>&1 | tail -n 2",
    )
    walk.edit("First watch, and refuse nobody: the lines are in the file, as comments.", "advice/gateway.yaml", _watch)
    walk.begin("", "tokenpools serve advice/gateway.yaml", "gateway.log", f"{ADMIN}/readyz")
    replay = (
        f"tokenpools replay advice/scenario.yaml --base-url {GATEWAY} --admin-url {ADMIN} --keys advice/keys.yaml "
        f"--set horizon_s={REPLAY_S} --out"
    )
    walk.run("The demand, in real time.", f"{replay} results/watched", fails=(0, 1), lines=16)
    watched = walk.run("What would have been refused?", f"tokenpools shadow {ADMIN}", lines=24)
    everybody = _summary(walk.folder / "results/watched", "all")
    walk.check("watching refuses nobody", float(everybody["refused"]) == 0, f"{everybody['refused']} refused")
    asked = int(re.search(r"([\d,]+) attempts", watched)[1].replace(",", ""))  # type: ignore[index]
    walk.check("the shadow heard every request", asked >= int(float(everybody["offered"])), f"{asked:,} attempts")
    if one.loses_a_replica:
        walk.stop("replica-1.log")
        walk.keep("What if a replica is lost? Ctrl-C in its terminal, and the demand again, still watching.",
                  "kill %2", "", 0.0, 1)  # fmt: skip
        walk.run("", f"{replay} results/watched-one-lost", fails=(0, 1), lines=16)
        walk.run(
            "It counts both runs. Under `none` requests wait in the server and stay long, also in the shadow's books: "
            "while the pool is overloaded a shadow says more than acting would refuse.",
            f"tokenpools shadow {ADMIN}", lines=24,
        )  # fmt: skip
        lost = _summary(walk.folder / "results/watched-one-lost", "all")
        claim = "watching refuses nobody, with a replica lost"
        walk.check(claim, float(lost["refused"]) == 0, f"{lost['refused']} refused")
    walk.edit("Now let it act: back to what was advised, and a signal.", "advice/gateway.yaml", _act)
    pid = walk.servers["gateway.log"].pid
    walk.run("", f"kill -HUP {pid}; sleep 1; grep -o 'changed over: [^\"]*' gateway.log")
    walk.steps[-1].command = f"kill -HUP %{replicas + 1}; grep -o 'changed over: [^\"]*' gateway.log"
    walk.run("The same demand.", f"{replay} results/enforced", fails=(0, 1), lines=16)
    state = json.loads(urllib.request.urlopen(f"{ADMIN}/admin/state", timeout=5).read())
    walk.check("the reload put the policy in force", state["policy"] == policy, state["policy"])
    for tenant in tenants:
        row = _summary(walk.folder / "results/enforced", tenant)
        met = float(row["slo_attainment"])
        claim = f"{tenant} meets its objective" + (" with a replica lost" if one.loses_a_replica else "")
        least = 0.9 if one.loses_a_replica else said["terms"]["target"]
        walk.check(f"{claim}, for {least:.0%} at least", met >= least, f"{met:.1%}")
    lost = " --set 'events=[{at_s: 0.001, fail: 1}]'" if one.loses_a_replica else ""
    walk.run(
        "Would a simulation have said so? The same requests, simulated.",
        f"tokenpools run advice/scenario.yaml --replications 1 --set horizon_s={REPLAY_S}{lost} --out results/simulated"
        " 2> run.log | tail -n 1",
    )
    enforced, simulated = (_summary(walk.folder / "results" / name, "all") for name in ("enforced", "simulated"))
    for metric, unit in (("refused", "requests"), ("ttft_p99_s", "s")):
        live, model = float(enforced[metric]), float(simulated[metric])
        near = abs(live - model) <= (0.05 * float(enforced["offered"]) if metric == "refused" else 0.25 * live)
        claim = {
            "refused": "the gateway refuses what a simulation refuses, within 5 % of the requests",
            "ttft_p99_s": "and the P99 of first tokens is a simulation's, within 25 %",
        }[metric]
        walk.check(claim, near, f"{live:.3g} {unit}, simulated {model:.3g}")
    for name in ("watched", "enforced"):
        manifest = json.loads((walk.folder / "results" / name / "manifest.json").read_text())
        late_s = manifest["cells"][0]["send_lag"]["p99_s"]
        claim = f"requests of the {name} run were sent in time (5 ms at P99)"
        walk.check(claim, manifest["valid"], f"{1e3 * late_s:.1f} ms")
    walk.run("What was it worth, and what did it cost whom?", "tokenpools metrics results/enforced", lines=14)
    walk.run("For colleagues, one page.", "tokenpools report results/enforced --out enforced.html")
    counts = f"curl -s {ADMIN}/metrics | grep ^tokenpools_requests_total"
    walk.run("For the pager: counts by tenant and reason.", counts, fails=(0, 1))
    walk.run("The gateway's own log is the next advice's demand.", "tokenpools trace inspect gateway.log", lines=18)
    for log in list(walk.servers):
        walk.stop(log)


def _watch(text: str) -> str:
    """Put the lines that the file has as comments in the place of its policy."""
    mine = re.search(r"^#   policy: none\n#   shadow: .*\n(policy:.*\n(?:[ -].*\n)*)", text, re.MULTILINE)
    assert mine is not None, "the file does not say how to watch"
    lines = re.findall(r"^#   (.*)$", mine[0], re.MULTILINE)
    kept = "".join(f"#acting {line}\n" for line in mine[1].splitlines())
    return text.replace(mine[1], "\n".join(lines) + "\n" + kept)


def _act(text: str) -> str:
    text = re.sub(r"^(policy: none|shadow: .*)\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^#acting ", "", text, flags=re.MULTILINE)


TRACES = (
    Trace(
        name="azure", title="Two services of Azure, on H100s", refs=("azure-llm-2023/conv", "azure-llm-2023/code"),
        objectives=("conv=1.0",), profile="h100-llama-3.1-8b", replicas=1, found="h100.yaml",
    ),
    Trace(
        name="arena", title="27 tenants of the Arena, on A10Gs, and one replica lost", refs=("lmsys-arena-vtc",),
        objectives=("arena-model-02=2.0", "arena-model-06=2.0"), profile="a10g-llama-2-7b-slora", replicas=2,
        found="a10g.yaml", loses_a_replica=True,
    ),
)  # fmt: skip


def main() -> None:
    """Walk, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "transcript", help="emptied first")
    parser.add_argument("--python", type=Path, help="an environment's bin folder, instead of a fresh one")
    parser.add_argument("--only", choices=[one.name for one in TRACES], help="walk this one again, and keep the others")
    asked = parser.parse_args()
    if "TOKENPOOLS_DATA" not in os.environ:
        sys.exit("error: TOKENPOOLS_DATA: is not set; name the folder that holds the traces")
    for url in ("8000/health", "8001/health", "8080/healthz", "9090/healthz"):
        if _answers(f"http://127.0.0.1:{url}"):
            sys.exit(f"error: somebody serves on port {url.partition('/')[0]}; stop them first")
    if asked.only is None:
        shutil.rmtree(asked.folder, ignore_errors=True)
    asked.folder.mkdir(parents=True, exist_ok=True)
    begun = Walk(asked.folder, os.environ["PATH"])
    bin_ = asked.python or asked.folder / "clone" / ".venv" / "bin"
    if asked.python is None and asked.only is None:
        install(begun, HERE.parent)
        _keep(begun, asked.folder / "installation.json")
    for one in TRACES:
        if asked.only not in (None, one.name):
            continue
        place = asked.folder / one.name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        walk = Walk(place, f"{bin_}{os.pathsep}{os.environ['PATH']}")
        try:
            walk_trace(walk, one)
        finally:
            for log in list(walk.servers):
                walk.stop(log)
        _keep(walk, asked.folder / f"{one.name}.json")
    kept = {one: _kept(asked.folder / f"{one.name}.json") for one in TRACES}
    walked = [(one, walk) for one, walk in kept.items() if walk is not None]
    PAGE.write_text(_page(_kept(asked.folder / "installation.json"), walked))
    if not all(held for _, walk in walked for _, held, _ in walk.checks):
        sys.exit(1)


def _keep(walk: Walk, place: Path) -> None:
    """Keep what a walk saw, so that another may be walked again without it."""
    walk.load = (walk.load[0], os.getloadavg()[0])
    place.write_text(json.dumps([[asdict(step) for step in walk.steps], walk.checks, walk.load]))


def _kept(place: Path) -> Walk | None:
    if not place.exists():
        return None
    steps, checks, load = json.loads(place.read_text())
    walk = Walk(place.parent, "", [Step(**step) for step in steps], [tuple(check) for check in checks])
    walk.load = (load[0], load[1])
    return walk


# ------------------------------------------------------------------------------------------------------------ the page


def _page(begun: Walk | None, walks: Sequence[tuple[Trace, Walk]]) -> str:
    parts = [_HEAD]
    rows = [("Installation, once", begun)] if begun is not None else []
    rows += [(one.title, walk) for one, walk in walks]
    parts.append(
        "| | commands | a person | of that reading | the machine | its load, before and after |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    for title, walk in rows:
        if walk.steps:
            person_s = sum(step.person_s for step in walk.steps)
            reads_s = sum(_reads_s(step.output) for step in walk.steps)
            machine_s = sum(step.machine_s for step in walk.steps)
            cells = (title, str(len(walk.steps)), _minutes(person_s), _minutes(reads_s), _minutes(machine_s),
                     f"{walk.load[0]:.0f}, {walk.load[1]:.0f}")  # fmt: skip
            parts[-1] += f"\n| {' | '.join(cells)} |"
    parts.append(
        f"Walked on {time.strftime('%-d %B %Y')} with Python {platform.python_version()} on {os.cpu_count()} cores. A "
        "load above the number of cores says that others worked on them too: searches take longer then, and requests "
        "are sent late."
    )
    parts.append("## What is checked\n\n| walk | claim | seen | |\n| --- | --- | --- | --- |\n" + "\n".join(
        f"| {one.name} | {claim} | {seen} | {'holds' if held else '**does not hold**'} |"
        for one, walk in walks for claim, held, seen in walk.checks
    ))  # fmt: skip
    for title, walk in rows:
        if not walk.steps:
            continue
        parts.append(f"## {title}")
        for step in walk.steps:
            took = f"*{step.machine_s:.0f} s of the machine, {step.person_s:.0f} s of a person.*"
            shown = f"$ {step.command}\n{step.output}".rstrip()
            parts.append(f"{step.words} {took}".strip() + f"\n\n```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


_HEAD = f"""# The whole path, typed

Two public traces from a file to limits that are enforced, without a GPU: what was typed and what came out, written
by `make transcript` (`docs/regenerate_transcript.py`), which installs a fresh clone and runs every command below.
Replace the trace by a log of your own; [From your logs to limits](from-logs-to-limits.md) explains the steps.

Machine times are measured. A person's time is reckoned: {COPY_S:.0f} s to copy and adapt a command, {EDIT_S:.0f} s to
edit a file, {60 * WORDS_PER_S:.0f} words a minute for what is shown and {ROW_S:.0f} s for a row of numbers; nobody sits
beside a search or a replay."""


if __name__ == "__main__":
    main()
