"""What a mock server tells Prometheus: the names, labels and buckets of vLLM 0.32's own page."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sim.mock_server.real_time import Generation, RealTimeReplica
from sim.scenario.profile import Profile

_TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
_TOKEN_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_WHOLE_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_LABELS = ("model_name", "engine")


class ServerMetrics:
    """The page of one replica. Times are those of the server's clock, which a client sees too."""

    def __init__(self, replica: RealTimeReplica, profile: Profile, model: str, *, speed: float) -> None:
        self.registry = CollectorRegistry()
        self._speed = speed
        labels = (model, "0")
        counter, histogram = self._counter(labels), self._histogram(labels)
        self._prompt = counter("vllm:prompt_tokens", "Prompt tokens computed.")
        self._output = counter("vllm:generation_tokens", "Output tokens made.")
        self._ttft_s = histogram("vllm:time_to_first_token_seconds", "Time to the first token.", _TTFT_S)
        self._token_s = histogram("vllm:inter_token_latency_seconds", "Time between two tokens.", _TOKEN_S)
        self._whole_s = histogram("vllm:e2e_request_latency_seconds", "Time of a request.", _WHOLE_S)
        self._ended = Counter(
            "vllm:request_success", "Requests that ended.", (*_LABELS, "finished_reason"), registry=self.registry
        )
        self._labels = labels
        self.registry.register(_Books(replica, profile, labels))

    def _counter(self, labels: tuple[str, str]) -> Callable[[str, str], Counter]:
        return lambda name, about: Counter(name, about, _LABELS, registry=self.registry).labels(*labels)

    def _histogram(self, labels: tuple[str, str]) -> Callable[[str, str, tuple[float, ...]], Histogram]:
        return lambda name, about, buckets: Histogram(
            name, about, _LABELS, registry=self.registry, buckets=buckets
        ).labels(*labels)

    def ended(self, generation: Generation, reason: str) -> None:
        """Count a sequence that has ended: "stop", "length", or "abort"."""
        self._ended.labels(*self._labels, reason).inc()
        if reason == "abort":
            return
        self._prompt.inc(generation.prompt_tokens)
        self._output.inc(generation.output_tokens)
        first_s = generation.first_token_s - generation.arrival_s
        whole_s = generation.finish_s - generation.arrival_s
        self._ttft_s.observe(first_s / self._speed)
        self._whole_s.observe(whole_s / self._speed)
        if generation.output_tokens > 1:
            self._token_s.observe((whole_s - first_s) / self._speed / (generation.output_tokens - 1))

    def page(self) -> bytes:
        """Return the page in Prometheus' text format."""
        return generate_latest(self.registry)


class _Books(Collector):
    """Gauges that are read from the replica when somebody asks."""

    def __init__(self, replica: RealTimeReplica, profile: Profile, labels: tuple[str, str]) -> None:
        self._replica = replica
        self._profile = profile
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        engine, now_s = self._replica.replica, self._replica.now_s()
        total = engine.kv_total_blocks
        for name, value in (
            ("vllm:num_requests_running", engine.running_count),
            ("vllm:num_requests_waiting", engine.waiting_count),
            ("vllm:kv_cache_usage_perc", engine.kv_used_blocks_at(now_s) / total if total else 0.0),
        ):
            gauge = GaugeMetricFamily(name, "As in vLLM.", labels=_LABELS)
            gauge.add_metric(self._labels, float(value))
            yield gauge
        preemptions = CounterMetricFamily("vllm:num_preemptions", "As in vLLM.", labels=_LABELS)
        preemptions.add_metric(self._labels, float(engine.preemptions))
        yield preemptions
        config = {
            "num_gpu_blocks": str(total), "block_size": str(self._profile.block_tokens),
            "enable_prefix_caching": str(self._profile.prefix_caching), "engine": "0",
        }  # fmt: skip
        info = GaugeMetricFamily("vllm:cache_config_info", "As in vLLM.", labels=tuple(config))
        info.add_metric(tuple(config.values()), 1.0)
        yield info
