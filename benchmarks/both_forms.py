"""Every shipped scenario in both forms, pure Python and compiled: the same columns, and what each form cost.

    python benchmarks/both_forms.py --compiled build/compiled/venv/bin/python [SCENARIO ...]

Both forms run in turn, one replication each. Compared is every column of every Parquet file; the identity of the run is
among them. Printed is a digest of all of them, to compare between commits. Scenarios on traces that TOKENPOOLS_DATA
does not have are left out, and named.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import scenarios


def run(name: str, python: Path, out: Path) -> dict[str, object] | str:
    """Run a scenario with the tokenpools of a Python; return its manifest, or why there is none."""
    command = [str(python), "-m", "sim", "run", name, "--replications", "1", "--out", str(out), "--no-progress"]
    done = subprocess.run(command, env=os.environ | {"PYTHONSAFEPATH": "1"}, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    manifest: dict[str, object] = json.loads((out / "manifest.json").read_text())
    return manifest


def hashes(result: Path) -> dict[str, str]:
    """Return a hash of every column of a result, by file and column."""
    found = {}
    for file in sorted(result.glob("*.parquet")):
        table = pq.read_table(file)
        for column in table.column_names:
            # In Arrow's own bytes: NaN equals NaN, no float is rounded, and a million rows take no time.
            sink = pa.BufferOutputStream()
            alone = table.select([column]).combine_chunks()
            with pa.ipc.new_stream(sink, alone.schema) as stream:
                stream.write_table(alone)
            found[f"{file.name}:{column}"] = hashlib.sha256(sink.getvalue()).hexdigest()
    return found


def cpu_s(manifest: dict[str, object]) -> float:
    """Return the CPU-seconds of a result's cells."""
    cells = manifest["cells"]
    assert isinstance(cells, list)
    return float(sum(cell["cpu_s"] for cell in cells))


def main() -> int:
    """Run, compare and print; exit code 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("scenario", nargs="*")
    asked = parser.parse_args()
    compiled = asked.compiled.absolute()
    shipped = sorted(path.stem for path in Path(scenarios.__file__).parent.glob("*.yaml"))
    wrong = 0
    for name in asked.scenario or shipped:
        with tempfile.TemporaryDirectory() as folder:
            plain, fast = Path(folder) / "plain", Path(folder) / "fast"
            first, second = run(name, Path(sys.executable), plain), run(name, compiled, fast)
            if isinstance(first, str) or isinstance(second, str):
                alike = isinstance(first, str) and isinstance(second, str)
                wrong += not alike
                why = first if isinstance(first, str) else second
                print(f"{name:36} {'left out' if alike else 'ONE FORM FAILS'}: {why}", flush=True)
                continue
            forms = first["form"], second["form"]
            one, other = hashes(plain), hashes(fast)
            columns = [name for name in {**one, **other} if one.get(name) != other.get(name)]
            wrong += bool(columns) or forms != ("pure Python", "compiled")
            said = "same bytes" if not columns else f"DIFFERENT: {', '.join(columns)}"
            plain_s, fast_s = cpu_s(first), cpu_s(second)
            digest = hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:16]
            print(f"{name:36} {digest} {said}; {' and '.join(map(str, forms))}: {plain_s:.2f} and {fast_s:.2f} CPU-s, "
                  f"{plain_s / max(fast_s, 1e-3):.2f} times", flush=True)  # fmt: skip
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
