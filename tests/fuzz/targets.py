"""What is fuzzed: for each kind of file, what reads it as a command would.

A target may only return, or raise an error for the user, whose text is one short line; anything else is a finding.
"""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from sim.errors import RunError, TokenpoolsError
from workloads.formats.errors import TraceError

LONGEST_S = 20
"""CPU seconds of one input, after which it is a finding: they take milliseconds."""
MOST_BYTES = 20_000
CORPUS = Path(__file__).parent / "corpus"
_SHOWN = 2000


class FindingError(AssertionError):
    """A file that is neither read nor refused as it should be."""


@contextmanager
def refusing() -> Iterator[None]:
    """Let errors for the user pass, if they are such."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a torn recording, an extrapolated profile
            yield
    except (TokenpoolsError, TraceError, RunError) as error:
        text = str(error)
        if "\n" in text or not text.isprintable() or not text or len(text) > _SHOWN:
            raise FindingError(f"an error that is not one short printable line: {text[:300]!r}") from error


@contextmanager
def in_time() -> Iterator[None]:
    """Raise where an input takes longer than any should."""

    def late(*_: object) -> None:
        raise FindingError(f"more than {LONGEST_S} s of CPU")

    # Of the process's own CPU: a busy machine is no finding.
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def scenario(data: bytes, folder: Path) -> None:
    """Load a scenario; one that is good is run for a few requests."""
    from sim.experiments.run import run_scenario
    from sim.scenario.load import load_scenario

    file = folder / "scenario.yaml"
    file.write_bytes(data)
    loaded = load_scenario(file)
    few = [one.model_copy(update={"requests": min(one.requests or 20, 20)}) for one in loaded.workload[:3]]
    small = loaded.model_copy(update={
        "workload": tuple(few), "policies": loaded.policies[:1], "vary": {}, "replications": 1,
        "timeline_interval_s": None, "horizon_s": min(loaded.horizon_s or 5.0, 5.0), "warmup_s": 0.0, "shadow": (),
    })  # fmt: skip
    size = small.pool.replicas * small.pool.profile.max_num_seqs * small.pool.gateways
    if size <= 100_000 and not any(hasattr(one.arrivals, "sessions_per_s") for one in few):
        run_scenario(small)


def serve(data: bytes, folder: Path) -> None:
    """Load a gateway's configuration, as ``serve --check`` does."""
    from sim.live.gateway.config_file import load_config
    from sim.live.gateway.core_from_config import make_core
    from sim.live.gateway.settings_from_config import make_settings

    file = folder / "gateway.yaml"
    file.write_bytes(data)
    config = load_config(file)
    make_settings(config, str(file))
    make_core(config)


def manifest(data: bytes, folder: Path) -> None:
    """Read Kubernetes objects of a pool."""
    from sim.scenario.manifests import pool_from_manifests

    file = folder / "pool.yaml"
    file.write_bytes(data)
    pool_from_manifests(file, "pool.yaml")


def profile(data: bytes, folder: Path) -> None:
    """Load a profile and ask it what an iteration costs."""
    from sim.scenario.profile import load_profile

    file = folder / "profile.yaml"
    file.write_bytes(data)
    loaded = load_profile(str(file), file="profile.yaml")
    for asked in ((0, 0, 1, 10), (100, 5050, 0, 0), (64, 2080, loaded.max_num_seqs, 10_000)):
        loaded.step_time.iteration_s(*asked)


TRACE_NAMES = ("t.csv", "t.jsonl", "t.json", "t.parquet", "t.csv.gz", "t")


def trace(data: bytes, folder: Path) -> None:
    """Recognise, measure, replay and convert a trace; the first byte chooses its name."""
    from sim.seeds import stream
    from sim.traces.convert import convert, layout_for
    from sim.traces.sources import open_source
    from sim.traces.statistics import measure
    from workloads.trace import Trace

    file = folder / TRACE_NAMES[data[0] % len(TRACE_NAMES) if data else 0]
    file.write_bytes(data[1:])
    source = open_source(str(file))
    measure(source.rows())
    out = folder / "out.jsonl"
    convert([source], out, layout_for(out, None), overwrite=True)
    replayed = Trace(file=str(file))
    replayed.requests(lambda name: stream(1, 0, name), "w", None, 0.0, 60.0, 50)


def sweep(data: bytes, folder: Path) -> None:
    """Read a sweep, of one layout and of several."""
    from sim.calibration.from_sweep import read_sweep
    from sim.calibration.layout_files import read_layouts

    file = folder / "sweep.csv"
    file.write_bytes(data)
    read_layouts(file)
    read_sweep(file)


def recording(data: bytes, folder: Path) -> None:
    """Tell a recording to a fresh core, and explain its first request."""
    from sim.judging.explain import explain_recording
    from sim.judging.parity import check_parity

    file = folder / "events.jsonl"
    file.write_bytes(data)
    check_parity(file)
    explain_recording(file, "r1")


RESULT_FILES = ("manifest.json", "summary.csv", "requests.parquet", "timeline.parquet")


def result(data: bytes, folder: Path) -> None:
    """Read a result of which one file, which the first byte chooses, holds something else."""
    from sim.analysis.compare import compare, in_words
    from sim.analysis.study import Study
    from sim.judging.result_runs import result_runs
    from sim.records.result_folder import read_result

    place = folder / "result"
    whole = _whole_result()
    place.mkdir(exist_ok=True)
    for name, content in whole.items():
        (place / name).write_bytes(content)
    (place / RESULT_FILES[data[0] % len(RESULT_FILES) if data else 0]).write_bytes(data[1:])
    read_result(place)
    study = Study(place)
    _ = study.summary, study.errors, study.cells, study.horizon_s
    in_words(compare(study, study))
    study.requests()
    runs = result_runs(place)
    for run in runs.runs():
        _ = run.requests, run.timeline, run.warmup_s


@lru_cache(maxsize=1)
def _whole_result() -> Mapping[str, bytes]:
    """Return the files of a small result without digests and seal, which would refuse every change at once."""
    from sim.experiments.run import run_scenario
    from sim.scenario.load import load_scenario

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result"
        run_scenario(load_scenario(CORPUS / "scenario" / "small.yaml"), out)
        files = {name: (out / name).read_bytes() for name in RESULT_FILES}
    plain = json.loads(files["manifest.json"])
    for name in ("seal", "files"):
        plain.pop(name)
    return {**files, "manifest.json": json.dumps(plain).encode()}


Target = Callable[[bytes, Path], None]
TARGETS: dict[str, Target] = {
    one.__name__: one for one in (scenario, serve, manifest, profile, trace, sweep, recording, result)
}


def made_seeds(name: str) -> list[bytes]:
    """Return seeds that are made rather than kept: files of our own formats."""
    if name == "result":
        return [bytes([i]) + _whole_result()[file] for i, file in enumerate(RESULT_FILES)]
    return []


def attempt(name: str, data: bytes) -> None:
    """Give a target one input.

    Raises
    ------
    FindingError, or whatever else it should not raise.
    """
    folder = Path(tempfile.mkdtemp(prefix="tokenpools-fuzz-"))
    try:
        with in_time(), refusing():
            TARGETS[name](data[:MOST_BYTES], folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seeds(name: str) -> list[bytes]:
    """Return the inputs that a target starts from."""
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    return [*kept, *made_seeds(name)]


