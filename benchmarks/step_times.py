"""What a step time costs: simulated requests per CPU-second of a replica alone, on one core.

    python benchmarks/step_times.py [--requests 20000] [--repeats 5]

Poisson arrivals, lognormal lengths of 512 + 256 tokens in the mean, no gateway. `table` is a shipped profile's, and
`linear` takes about as long an iteration, so both meet the same load. The best of the repeats is shown, and its share
of what `linear` reaches; the goal for `table` is half.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace

import numpy as np

from sim.calibration.single_replica import Requests, replay
from sim.engine.step_table import ExtrapolationWarning
from sim.engine.step_time import LinearStepTime, StepTime
from sim.scenario.profile import Profile, load_profile
from workloads.lengths import Lognormal

PROFILE = "rtx-pro-6000-llama-3.1-8b"
RATE_PER_S = 8.0


def load(requests: int) -> Requests:
    """Return the requests."""
    rng = np.random.default_rng(1)
    prompt = Lognormal(mean=512, cv=0.8).draw(rng, requests)
    output = Lognormal(mean=256, cv=0.9).draw(rng, requests)
    return Requests(np.cumsum(rng.exponential(1 / RATE_PER_S, requests)), prompt, output)


def requests_per_cpu_s(profile: Profile, step_time: StepTime, requests: Requests, repeats: int) -> float:
    """Return the best of some simulations."""
    best_s = float("inf")
    for _ in range(repeats):
        begin_s = time.process_time()
        replay(profile, requests, step_time=step_time)
        best_s = min(best_s, time.process_time() - begin_s)
    return len(requests) / best_s


def main() -> None:
    """Print a line for each step time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ExtrapolationWarning)
    table = load_profile(PROFILE).model_copy(update={"max_num_seqs": 256, "prefix_caching": False})
    linear = LinearStepTime(
        base_s=0.010, per_prefill_token_s=3.5e-5, per_decode_sequence_s=3e-5, per_context_token_s=9e-8
    )
    cases: dict[str, StepTime] = {
        "linear": linear,
        "table, even contexts": replace(table.step_time, skew=0.0),
        "table": table.step_time,
    }
    requests = load(options.requests)
    first = 0.0
    for name, step_time in cases.items():
        reached = requests_per_cpu_s(table, step_time, requests, options.repeats)
        first = first or reached
        print(f"{name:<24} {reached:>10,.0f} requests per CPU-s  {reached / first:>6.1%}", flush=True)


if __name__ == "__main__":
    main()
