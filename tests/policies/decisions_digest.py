"""Prints, for each policy of the contract suite, a digest of what it decides in a fixed run, and of its state after it.

Run by `test_snapshot.py` in processes whose strings hash differently.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
found = importlib.util.spec_from_file_location("contract", Path(__file__).with_name("test_contract.py"))
assert found is not None
assert found.loader is not None
contract = importlib.util.module_from_spec(found)
found.loader.exec_module(contract)

for name, params in contract.EXAMPLES.items():
    rng = random.Random(5)
    auditor = contract.Auditor(contract.pool(params))
    whats = ["arrive"] * 6 + ["first", "progress", "finish", "fail", "cancel", "wait", "capacity"]
    for _ in range(400):
        auditor.step(rng.choice(whats), rng.randint(0, 40), rng.randint(1, 200))
    told = repr(auditor.said) + json.dumps(contract.snapshot.take(auditor.core))
    print(name, len(auditor.said), hashlib.sha256(told.encode()).hexdigest())  # noqa: T201
