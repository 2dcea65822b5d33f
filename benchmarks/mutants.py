"""Do the tests notice? Plants small faults in the code, one at a time, and counts how many the area's own tests find.

``make mutants`` runs it. The operators are cosmic-ray's, less those that only ever crash, and two of its kind that it
lacks: a statement dropped, and min for max. From all the places where one applies, a seed draws a sample for each
area; each mutant is planted in a copy of the tree, and the area's tests run there until the first one fails. What was
found is kept in ``--out``, so that a run that was stopped goes on where it was, and one with more tests need only look
at what lived (``--again``).
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import parso
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from mutant_tests import load_libraries, try_mutant, unharmed
from named_mutants import NAMED

ROOT = Path(__file__).resolve().parent.parent
SEED = 14

_SAME = "core/"
_COMPARISONS = (
    "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Eq_NotEq", "NotEq_Eq", "Is_IsNot",
    "IsNot_Is",
)  # fmt: skip
_ARITHMETIC = (
    "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul", "Add_Mul",
    "Sub_Mul", "Mul_Add", "Div_Sub",
)  # fmt: skip
OPERATORS = (
    *(f"{_SAME}ReplaceComparisonOperator_{name}" for name in _COMPARISONS),
    *(f"{_SAME}ReplaceBinaryOperator_{name}" for name in _ARITHMETIC),
    *(f"{_SAME}{name}" for name in (
        "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not", "AddNot", "ReplaceTrueWithFalse",
        "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
        "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop",
    )),
    "own/DropStatement", "own/MinMax",
)  # fmt: skip


class Area(NamedTuple):
    """Files to plant faults in, and the tests that ought to notice, the quickest first."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


AREAS: Mapping[str, Area] = {
    "core": Area(
        ("policies/core*.py", "policies/pool_state.py", "policies/ledgers.py", "policies/handover.py"),
        ("tests/policies/*.py", "tests/policies/token_pool/*.py"),
    ),
    "token pools": Area(("policies/token_pool/*.py",), ("tests/policies/*.py", "tests/policies/token_pool/*.py")),
    "replica": Area(
        ("sim/cluster/replica.py", "sim/cluster/batch.py", "sim/cluster/scheduler.py", "sim/cluster/kv_cache.py"),
        ("tests/cluster/test_replica*.py", "tests/cluster/test_prefix_cache.py", "tests/cluster/test_speculation.py",
         "tests/cluster/test_engine_sch*.py", "tests/cluster/test_invariants.py", "tests/cluster/test_fleet.py"),
    ),
    "statistics": Area(("sim/analysis/statistics.py",), ("tests/analysis/test_st[au][td]*.py",)),
    "summary": Area(
        ("sim/analysis/summary.py",), ("tests/analysis/test_summary*.py", "tests/analysis/test_second_hand*.py")
    ),
    "gateway": Area(
        ("sim/live/gateway/core_driver.py", "sim/live/gateway/in_flight.py", "sim/live/gateway/relay.py"),
        ("tests/live/gateway/*.py", "tests/parity/*.py"),
    ),
    "load client": Area(("sim/live/loadgen/open_loop.py",), ("tests/live/loadgen/*.py",)),
    "engines in step": Area(
        ("sim/cluster/server_work.py", "sim/cluster/ranks.py", "sim/cluster/pipeline.py", "sim/engine/ranks.py",
         "sim/engine/pipeline.py"),
        ("tests/cluster/test_ranks.py", "tests/cluster/test_pipeline.py", "tests/cluster/test_conformance.py",
         "tests/profiles/test_outside_the_step.py", "tests/calibration/test_single_replica.py"),
    ),
    "rooflines and links": Area(
        ("sim/profiles/roofline.py", "sim/profiles/gpus.py", "sim/engine/links.py"),
        ("tests/profiles/*.py", "tests/calibration/test_from_model.py"),
    ),
    "calibration": Area(("sim/calibration/*.py",), ("tests/calibration/*.py", "tests/profiles/*.py")),
    "held out": Area(
        ("sim/studies/held_out_halves.py", "sim/studies/silicon_fit.py", "sim/studies/first_token_neighbours.py"),
        ("tests/studies/test_held_out_halves.py", "tests/studies/test_first_token_neighbours.py",
         "tests/studies/test_silicon_by_hand.py", "tests/studies/test_silicon_fit.py"),
    ),
}  # fmt: skip


class DropStatement(Operator):
    """Leaves out a call whose value nobody takes, or an assignment that adds to something."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Yield where it applies."""
        if node.type != "expr_stmt" and node.type not in ("atom_expr", "await_expr"):
            return
        if node.type == "expr_stmt":
            if node.children[1].type == "operator" and str(node.children[1].value).endswith("=") and node.children[
                1
            ].value not in ("=", ":="):
                yield node.start_pos, node.end_pos
        elif node.parent.type == "simple_stmt" and node.get_last_leaf().value == ")":
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:  # noqa: ARG002
        """Return `pass`."""
        return parso.python.tree.Keyword("pass", node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls) -> Sequence[Any]:
        """None."""
        return ()


class MinMax(Operator):
    """Takes the lesser for the greater, and the other way round."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Yield where it applies."""
        if node.type == "name" and node.value in ("min", "max") and node.get_next_leaf().value == "(":
            previous = node.get_previous_leaf()
            if previous is None or previous.value != ".":
                yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:  # noqa: ARG002
        """Return the other one."""
        other = "max" if node.value == "min" else "min"
        return parso.python.tree.Name(other, node.start_pos, prefix=node.prefix)

    @classmethod
    def examples(cls) -> Sequence[Any]:
        """None."""
        return ()


_OWN: Mapping[str, type[Operator]] = {"own/DropStatement": DropStatement, "own/MinMax": MinMax}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Mutant(NamedTuple):
    """One fault: what a line was, and what it becomes in ``source``."""

    path: str
    operator: str
    line: int
    change: str
    source: str
    twin: int = 0

    @property
    def key(self) -> str:
        """What it is known by, as long as its line is as it was: of lines that are alike, ``twin`` is the number."""
        return _hash(f"{self.path} {self.operator} {self.change} {self.twin}")


def operator_of(name: str) -> Operator:
    """Return an operator by name."""
    kind = _OWN.get(name) or get_operator(name)
    return kind()


def places_in(source: str) -> Iterator[tuple[int, str, int]]:
    """Yield the line, operator and number of every place where an operator applies."""
    operators = [(name, operator_of(name)) for name in OPERATORS]
    counts = dict.fromkeys(OPERATORS, 0)

    def walk(node: Any) -> Iterator[tuple[int, str, int]]:
        for name, operator in operators:
            for start, _ in operator.mutation_positions(node):
                yield start[0], name, counts[name]
                counts[name] += 1
        for child in getattr(node, "children", ()):
            yield from walk(child)

    yield from walk(parso.parse(source))


def mutant_of(path: str, source: str, operator: str, occurrence: int) -> Mutant | None:
    """Return a mutant, or None where it is no program or the same one."""
    mutated = mutate_code(source, operator_of(operator), occurrence)
    try:
        if mutated is None or ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    if mutated.replace("strict=False", "strict=True") == source.replace("strict=False", "strict=True"):
        return None  # zip's strict only says what holds anyway
    if _by_place(mutated) != _by_place(source):
        return None  # the star that makes parameters keywords is no multiplication
    before, after = source.splitlines(), mutated.splitlines()
    at = next(i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    twin = [line.strip() for line in before[:at]].count(before[at].strip())
    return Mutant(path, operator, at + 1, f"{before[at].strip()}  ->  {after[at].strip()}", mutated, twin)


def _by_place(source: str) -> int:
    return sum(len(node.posonlyargs) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.arguments))


def named(area: str, root: Path) -> list[Mutant]:
    """Return an area's faults by name.

    Raises
    ------
    SystemExit : the text of one is not there, or not there once.
    """
    found = []
    for one in NAMED:
        if one.area != area:
            continue
        source = (root / one.path).read_text()
        if source.count(one.before) != 1:
            raise SystemExit(f"error: {one.path} has {one.before!r} {source.count(one.before)} times; give it once")
        line = source[: source.index(one.before)].count("\n") + 1
        found.append(Mutant(one.path, "named", line, one.what, source.replace(one.before, one.after)))
    return found


def changed_since(revision: str) -> dict[str, set[int]]:
    """Return the numbers of the lines that were written or changed since a revision, by file."""
    said = subprocess.run(
        ["git", "diff", "-U0", "--no-color", revision, "--", "*.py"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    found: dict[str, set[int]] = {}
    name = ""
    for line in said.splitlines():
        if line.startswith("+++ "):
            name = line.removeprefix("+++ b/")
        elif at := re.match(r"@@ -\S+ \+(\d+)(?:,(\d+))? @@", line):
            first, count = int(at[1]), int(at[2] or 1)
            found.setdefault(name, set()).update(range(first, first + count))
    return found


def sample(area: Area, n: int, seed: int, root: Path, lines: Mapping[str, set[int]] | None = None) -> list[Mutant]:
    """Draw mutants of an area: a line first and then one of its mutants, so that long lines do not count more.

    A line's place in the draw is a hash of what it says: another line that changes does not change it. ``lines`` are
    those that may be drawn, by file; all where it is left out.
    """
    by_line: dict[tuple[str, int], list[tuple[str, int]]] = {}
    sources: dict[str, str] = {}
    for path in sorted({path for pattern in area.files for path in root.glob(pattern)}):
        name = str(path.relative_to(root))
        sources[name] = path.read_text()
        for line, operator, occurrence in places_in(sources[name]):
            if lines is not None and line not in lines.get(name, ()):
                continue
            by_line.setdefault((name, line), []).append((operator, occurrence))
    def drawn(place: tuple[str, int]) -> str:
        return _hash(f"{seed} {sources[place[0]].splitlines()[place[1] - 1].strip()}")

    found: list[Mutant] = []
    for place in sorted(by_line, key=drawn):
        for operator, occurrence in sorted(by_line[place], key=lambda one: _hash(f"{seed} {one[0]}")):
            mutant = mutant_of(place[0], sources[place[0]], operator, occurrence)
            if mutant is not None:
                found.append(mutant)
                break
        if len(found) == n:
            break
    return found


# --------------------------------------------------------------------------------------------------------------------


def copy_tree(to: Path) -> None:
    """Copy what git knows, or would, of the tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, to / name
        if not source.is_file():
            target.unlink(missing_ok=True)
        elif not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for stale in [path for path in to.rglob("test_*.py") if not (ROOT / path.relative_to(to)).exists()]:
        stale.unlink()


def tests_of(area: Area, tree: Path) -> list[str]:
    """Return the area's tests that there are."""
    found = {path for pattern in area.tests for path in tree.glob(pattern) if path.name.startswith("test_")}
    return sorted(str(path.relative_to(tree)) for path in found)


def mutants_of(name: str, args: argparse.Namespace, root: Path) -> list[Mutant]:
    """Return what to plant in an area."""
    if args.named:
        return named(name, root)
    area, lines = AREAS[name], None if args.since is None else changed_since(args.since)
    if args.per_file is None:
        return sample(area, args.per_area, args.seed, root, lines)
    paths = sorted({str(path.relative_to(root)) for pattern in area.files for path in root.glob(pattern)})
    paths = [path for path in paths if not args.files or Path(path).name in args.files]
    return [one for path in paths for one in sample(Area((path,), ()), args.per_file, args.seed, root, lines)]


def enter(tree: Path) -> None:
    """Make this process one that works in the copy: its modules first, no threads that a fork would lose."""
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    sys.path[:] = [str(tree), *(one for one in sys.path if Path(one or ".").resolve() not in (ROOT, tree))]
    os.chdir(tree)


def examine(name: str, args: argparse.Namespace, until_s: float) -> None:
    """Look at one area's sample, as far as time goes."""
    area, tree = AREAS[name], args.out / "tree"
    kept = args.out / f"{name.replace(' ', '_')}.jsonl"
    known = read(kept)
    drawn = mutants_of(name, args, tree)
    wanted = [m for m in drawn if m.key not in known or (args.again and known[m.key]["outcome"] == "lived")]
    print(f"{name}: {len(drawn)} mutants, {len(wanted)} to look at", flush=True)
    if not wanted:
        return
    log = args.out / "tests.log"
    began_s = time.monotonic()
    files = sorted({mutant.path for mutant in wanted})
    reached = unharmed(tree, args.tests or tests_of(area, tree), files, log)
    load_libraries(reached.modules)
    print(f"  {len(reached.took_s)} tests, unharmed {time.monotonic() - began_s:.0f} s", flush=True)
    for mutant in wanted:
        if time.monotonic() > until_s:
            print("  out of time; run it again to go on", flush=True)
            return
        found = try_mutant(reached, tree, mutant.path, mutant.source, mutant.line, args.tests_s, log)
        outcome = "killed" if found.killed_by else "lived"
        row = {
            "key": mutant.key, "path": mutant.path, "line": mutant.line, "operator": mutant.operator,
            "change": mutant.change, "outcome": outcome, "by": found.killed_by, "tests": found.tests,
            "took_s": round(found.took_s, 1),
        }  # fmt: skip
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"  {outcome:6} {found.took_s:5.1f} s  {mutant.path}:{mutant.line}  {mutant.change}", flush=True)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what was found of each mutant, the last word of each."""
    if not path.exists():
        return {}
    return {row["key"]: row for row in map(json.loads, path.read_text().splitlines())}


def report(args: argparse.Namespace) -> None:
    """Print how many of the present samples were killed, and who lived."""
    print("\n| area | mutants | killed | share |\n| --- | --- | --- | --- |")
    lived: list[str] = []
    for name in args.area:
        known = read(args.out / f"{name.replace(' ', '_')}.jsonl")
        rows = [known[m.key] for m in mutants_of(name, args, ROOT) if m.key in known]
        killed = sum(row["outcome"] == "killed" for row in rows)
        share = f"{100 * killed / len(rows):.0f} %" if rows else "-"
        print(f"| {name} | {len(rows)} | {killed} | {share} |")
        lived += [f"{row['path']}:{row['line']}  {row['change']}" for row in rows if row["outcome"] == "lived"]
    print("\nlived:")
    for line in lived:
        print(f"  {line}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--area", nargs="*", default=list(AREAS), choices=list(AREAS), help="all where left out")
    parser.add_argument("--per-area", type=int, default=25, help="mutants to draw for each area")
    parser.add_argument("--per-file", type=int, help="mutants to draw for each file of an area instead")
    parser.add_argument("--files", nargs="*", help="with --per-file: only files of these names")
    parser.add_argument("--since", help="only lines that were written or changed since this revision of git")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--budget-s", type=float, default=3600.0, help="begin no other mutant after so long")
    parser.add_argument(
        "--tests", nargs="*", help="ask these test files alone: who lives is to be asked --again, with all"
    )
    parser.add_argument("--tests-s", type=float, default=60.0, help="how long a mutant's tests may be, unharmed")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants", help="where results are kept")
    parser.add_argument("--named", action="store_true", help="plant those of named_mutants.py instead of a sample")
    parser.add_argument("--again", action="store_true", help="look once more at those that lived")
    parser.add_argument("--report", action="store_true", help="only say what was found")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    if not args.report:
        args.out.mkdir(parents=True, exist_ok=True)
        copy_tree(args.out / "tree")
        until_s = time.monotonic() + args.budget_s
        enter(args.out / "tree")
        for name in args.area:
            examine(name, args, until_s)
    report(args)


if __name__ == "__main__":
    main()
