"""Reading Prometheus' text format: what prometheus_client makes of a page, without paying for all of it."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, Histogram, Info, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from sim.live.replicas.engine_metrics import GAUGES, cache_config, read_gauges

RUNNING, WAITING, KV = GAUGES


@pytest.mark.parametrize(
    ("page", "found"),
    [
        (f"{RUNNING} 3 1732800000000\n{WAITING} 1\n", (3, 1, 0)),  # with a timestamp
        (f'{RUNNING}{{engine="0"}} 3 1732800000000\n', (3, 0, 0)),
        (f'{RUNNING}{{a="x"}} 3 # {{trace_id="a b # c"}} 0.67 1732800000.1\n', (3, 0, 0)),  # with an exemplar
        (f'{RUNNING}{{model_name="a }} b"}} 3\n', (3, 0, 0)),
        (f'{RUNNING}{{model_name="say \\"hi\\" 9\\n8\\\\"}} 3\n', (3, 0, 0)),
        (f'{RUNNING}{{model_name="a\u2028{RUNNING} 9"}} 3\n', (3, 0, 0)),  # no end of a line here
        (f'{RUNNING}{{model_name="a\x0b9"}} 3\n', (3, 0, 0)),
        (f'{{"{RUNNING}",engine="0"}} 3\n', (3, 0, 0)),  # a name in quotes
        (f"{RUNNING} 3\r\n{WAITING} 2\r\n", (3, 2, 0)),
        (f"\t{RUNNING}\t3\n", (3, 0, 0)),
        (f"{RUNNING} NaN\n{WAITING} 2\n{KV} NaN\n", (0, 2, 0)),
        (f"{RUNNING} +Inf\n{RUNNING} 2\n", (2, 0, 0)),
        (f"{RUNNING} -1\n{WAITING} 1\n", (0, 1, 0)),
        (f"{RUNNING} {'9' * 400}\n{WAITING} 1\n", (0, 1, 0)),
        (f"{RUNNING} 1_0\n{WAITING} 1\n", (0, 1, 0)),
        (f"{RUNNING} three\n{WAITING} 1\n", (0, 1, 0)),  # one bad line costs itself
        (f'{RUNNING}{{model="half\n{WAITING} 1\n', (0, 1, 0)),
        (f"{RUNNING} 1\n{KV} 0.5\nvllm:gpu_cache_usage_perc 0.7\n", (1, 0, 0.5)),
        (f"{RUNNING} 1\nvllm:gpu_cache_usage_perc 0.7\n", (1, 0, 0.7)),
        (f"{RUNNING}_by_reason 9\n", None),
        (f"{RUNNING} NaN\n", None),
        ("", None),
        ("<html>\n", None),
    ],
)
def test_gauges_are_read_as_the_format_says(page: str, found: tuple[float, float, float] | None) -> None:
    assert read_gauges(page) == found


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.text(max_size=8), st.integers(0, 500)), max_size=4, unique_by=lambda one: one[0]),
    st.floats(0, 1),
)
def test_a_page_that_the_library_wrote_is_read_as_the_library_reads_it(
    engines: list[tuple[str, int]], kv: float
) -> None:
    registry = CollectorRegistry()
    running = Gauge(RUNNING, "x", ["model_name"], registry=registry)
    waiting = Gauge(WAITING, "y", registry=registry)
    Gauge(KV, "z", registry=registry).set(kv)
    Histogram("vllm:e2e", "h", registry=registry).observe(0.1)
    for name, value in engines:
        running.labels(name.encode("utf-8", "replace").decode()).set(value)
    waiting.set(2)
    page = generate_latest(registry).decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    total = sum(sample.value for sample in samples if sample.name == RUNNING)
    assert read_gauges(page) == (total, 2, kv)


@given(st.text(alphabet=st.sampled_from(list(f'{RUNNING}{{}}"\\= ,#\n\t3.e+')), max_size=120))
def test_no_page_breaks_the_reader(text: str) -> None:
    found = read_gauges(f"{RUNNING}{text}\n{WAITING} 1\n")
    assert found is not None
    assert all(math.isfinite(value) for value in found)


def test_a_hostile_page_costs_no_more_than_its_length() -> None:
    page = "\n".join(f'{RUNNING}{{a="{chr(92)}"' + '\\"' * 500_000 for _ in range(4))
    began = time.process_time()
    assert read_gauges(page) is None
    assert time.process_time() - began < 1.0


def test_the_cache_configuration_has_labels_of_any_text() -> None:
    registry = CollectorRegistry()
    Info("vllm:cache_config", "c", registry=registry).info({"num_gpu_blocks": "7", "path": 'a"b\\c\nd,e="f"'})
    page = generate_latest(registry).decode()
    assert cache_config(page) == {"num_gpu_blocks": "7", "path": 'a"b\\c\nd,e="f"'}
    assert cache_config("nothing") == {}
