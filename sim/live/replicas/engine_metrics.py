"""What an engine says of itself in Prometheus' text format: vLLM's gauges and its cache configuration.

Lines are read by prometheus_client, one at a time: one that it refuses costs that line and not the page, and the
thousand lines of histograms on a page of vLLM's, which nobody here needs, cost a comparison of their beginning each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
_OLD_KV_CACHE = "vllm:gpu_cache_usage_perc"  # before vLLM 0.10
_V0_ONLY = "vllm:num_requests_swapped"  # V1 swaps nothing
CACHE_CONFIG = "vllm:cache_config_info"
_MOST_REQUESTS = 2.0**53
_LONGEST_LINE = 8_192  # characters; the library's time grows with the square of the quotes in a line


def samples(page: str, names: Collection[str]) -> Iterator[Sample]:
    """Yield the samples of these metrics on a page; timestamps and exemplars are allowed and not looked at."""
    plain, quoted = tuple(names), tuple(f'"{name}"' for name in names)
    # Not splitlines: a label may hold what only Unicode takes for the end of a line.
    for line in page.split("\n"):
        text = line.strip()
        if not text.startswith(plain) and not (text.startswith("{") and text[1:].lstrip().startswith(quoted)):
            continue
        sample = _sample(text) if len(text) <= _LONGEST_LINE else None
        if sample is not None and sample.name in names:
            yield sample


def _sample(line: str) -> Sample | None:
    """Return the sample of a line, None where it is none."""
    # The text format has no exemplars, OpenMetrics has: one that the parser does not pass over is cut off.
    for text in (line, line.rpartition(" # ")[0]):
        try:
            for family in text_string_to_metric_families(f"{text}\n"):
                for sample in family.samples:
                    return Sample(*sample)
        except ValueError:
            continue
    return None


def _number(value: float) -> float:
    try:
        return float(value)  # the library gives whole numbers as they are written, of any size
    except OverflowError:
        return math.inf


def read_gauges(page: str) -> tuple[float, float, float] | None:
    """Return running and waiting requests (summed over engines) and the largest share of KV cache in use.

    What is not a number, infinite or negative says nothing. None where the page has neither of the first two: it is no
    vLLM's.
    """
    found: dict[str, list[float]] = {name: [] for name in (*GAUGES, _OLD_KV_CACHE)}
    for sample in samples(page, found):
        value = _number(sample.value)
        if math.isfinite(value) and 0 <= value <= _MOST_REQUESTS:
            found[sample.name].append(value)
    running, waiting, kv = (found[name] for name in GAUGES)
    if not running and not waiting:
        return None
    return sum(running), sum(waiting), max(kv or found[_OLD_KV_CACHE], default=0.0)


def is_v0(page: str) -> bool:
    """Return whether a metrics page is of vLLM's V0 engine, whose scheduler is another than V1's."""
    return next(iter(samples(page, (_V0_ONLY,))), None) is not None


def cache_config(page: str) -> dict[str, str]:
    """Return the labels of ``vllm:cache_config_info`` on a metrics page; empty where it has none."""
    return next((dict(sample.labels) for sample in samples(page, (CACHE_CONFIG,))), {})
