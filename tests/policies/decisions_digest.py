"""Prints, for each policy of the contract suite, a digest of what it decides in a fixed run, and of its state after it.

Run by `test_snapshot.py` in processes whose strings hash differently.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from parity.examples import EXAMPLES

from policies import snapshot
from tokenpools.testing import Auditor, make_core

for name, params in EXAMPLES.items():
    rng = random.Random(5)
    auditor = Auditor(make_core(params))
    whats = ["arrive"] * 6 + ["first", "progress", "finish", "fail", "cancel", "wait", "capacity"]
    for _ in range(400):
        auditor.step(rng.choice(whats), rng.randint(0, 40), rng.randint(1, 200))
    told = repr(auditor.said) + json.dumps(snapshot.take(auditor.core))
    print(name, len(auditor.said), hashlib.sha256(told.encode()).hexdigest())  # noqa: T201
