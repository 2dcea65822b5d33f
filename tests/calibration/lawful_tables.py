"""Kernel tables by a simple law, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def write_tables(folder: Path) -> None:
    chunks, contexts, batches = [16, 128, 256, 512, 1024, 2048], [0, 512, 2048, 16384], [1, 4, 16, 32, 64, 128]
    each = [16, 256, 1024, 2048, 4096, 16384]
    rows = [(p, c, 0, 0, 5 + 0.01 * p + 1e-5 * p * (c + p / 2)) for p in chunks for c in contexts]
    rows += [(0, 0, n, k, 5 + 0.002 * n * k) for n in batches for k in each]
    rows += [
        (p, c, n, k, 5 + 0.01 * p + 1e-5 * p * (c + p / 2) + 0.004 * n * k)
        for p in chunks for c in contexts for n in batches for k in each
    ]  # fmt: skip
    columns = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "attention.csv", index=False)
    tokens = [1, 16, 64, 256, 1024, 2048]
    dense = [("qkv_proj", t, 50 + 0.1 * t) for t in tokens] + [("layernorm", t, 2.0) for t in tokens]
    dense += [("embedding", t, 3.0) for t in tokens]
    pd.DataFrame(dense, columns=["layer", "tokens", "time_us"]).to_csv(folder / "dense.csv", index=False)
    per = [("lm_head", n, 700 + n) for n in (1, 64, 256)]
    pd.DataFrame(per, columns=["layer", "sequences", "time_us"]).to_csv(folder / "per_sequence.csv", index=False)
