"""Looks for every field of a scenario that is read and changes nothing; two to ten minutes of one core.

    PYTHONPATH=tests python -m effects.run [--write] [FIELD ...]

Each change that ``witnesses.json`` holds is made again; where one shows nothing any more another is looked for. Fields
that are left without one, and without a reason in ``reasons.py``, are named, and the exit code is 1. ``--write`` keeps
what was found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from effects.fields import all_fields, unvouched
from effects.reasons import REFUSES, SAYS
from effects.search import Nothing, Search, Witness, keep, kept
from sim.scenario.model import Scenario


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fields", nargs="*", metavar="FIELD", help="Class.field; left out, all")
    parser.add_argument("--write", action="store_true", help="keep what was found")
    asked = parser.parse_args()
    known = kept() if Path(__file__).with_name("witnesses.json").exists() else {}
    fields = all_fields(Scenario)
    left: dict[str, Nothing] = {}
    found: dict[str, Witness] = {}
    with tempfile.TemporaryDirectory() as folder:
        search = Search(Path(folder))
        for key in sorted(asked.fields or fields):
            one = known.get(key)
            if one is not None and one.base in search.trees and search.changes(one.base, one.steps, one.value):
                found[key] = one
                continue
            if key in SAYS or key in REFUSES:
                continue
            other = search.witness(key)
            if isinstance(other, Witness):
                found[key] = other
                if asked.write:  # as it goes, so that what was found is kept where it is stopped
                    keep({name: each for name, each in (known | found).items() if name in fields})
                print(f"{key}: {other.base}, {other.path}={other.value!r}", flush=True)
            else:
                left[key] = other
    if asked.write:
        keep({key: one for key, one in (known | found).items() if key in fields and key not in left})
    bare = unvouched(fields, {*known, *found, *SAYS, *REFUSES})
    left = {key: nothing for key, nothing in left.items() if key in bare}
    for key, nothing in left.items():
        print(f"{key}: no effect found ({nothing.same} changes showed nothing, {nothing.refused} were refused)")
    print(f"{len(found)} fields change what a run shows, {len(left)} do not, of {len(fields)}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
