"""Worker and scheduler classes that make vLLM on a CPU a GPU stand-in with known iteration times.

API server, scheduler, KV block manager, chunked prefill, preemption and metrics stay vLLM's own; only how long a
forward pass takes is set. The classes hang on internals of vLLM 0.32.0, which requirements.txt pins.

- ``PACE=a,b,c,d``: an iteration takes a + b*(prompt tokens) + c*(decoding sequences) + d*(KV tokens)/1000 milliseconds.
- ``SLOTS_FILE``: a file with the number of sequences that may run at once; it may change while the server runs.

Run with ``--worker-cls paced.PacedWorker --scheduler-cls paced.SlotsScheduler`` and this folder on PYTHONPATH.
"""

from __future__ import annotations

import os
import time
from typing import Any

from vllm.distributed.device_communicators import shm_broadcast
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.utils import compute_iteration_details
from vllm.v1.worker.cpu_worker import CPUWorker

_POLL_MS = 1.0
_REPORT_EVERY = 500


def pace() -> tuple[float, float, float, float]:
    """Return the four coefficients of PACE, in milliseconds."""
    base, prefill, decode, context = (float(part) for part in os.environ.get("PACE", "60,0.05,0.4,0").split(","))
    return base, prefill, decode, context


class AmxWorker(CPUWorker):
    """A CPU worker that asks for the AMX tiles before its first iteration, and runs as fast as it can.

    Linux grants a process those registers only on request. oneDNN makes the request at its first large product, but an
    eager worker has no warm-up, and a short first prompt reaches the attention kernel before: SIGILL.
    """

    def init_device(self) -> Any:
        """Ask, then start as usual."""
        import torch

        torch.cpu._init_amx()
        return super().init_device()


class PacedWorker(AmxWorker):
    """A worker whose every iteration lasts as long as PACE says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pace_ms = pace()
        self._iterations = self._late = 0

    def execute_model(self, scheduler_output: Any) -> Any:
        """Compute, then wait for the rest of the modelled time."""
        started_s = time.monotonic()
        output = super().execute_model(scheduler_output)
        if scheduler_output.total_num_scheduled_tokens:
            self._wait(started_s, self._target_s(scheduler_output))
        return output

    def _target_s(self, scheduled: Any) -> float:
        base, per_prefill_token, per_decode, per_thousand_kv = self._pace_ms
        made_of = compute_iteration_details(scheduled)
        kv_tokens = 0
        if per_thousand_kv:
            kv_tokens = scheduled.total_num_scheduled_tokens
            kv_tokens += sum(scheduled.scheduled_cached_reqs.num_computed_tokens)
            kv_tokens += sum(request.num_computed_tokens for request in scheduled.scheduled_new_reqs)
        return 1e-3 * (
            base
            + per_prefill_token * made_of.num_ctx_tokens
            + per_decode * made_of.num_generation_requests
            + per_thousand_kv * kv_tokens / 1000
        )

    def _wait(self, started_s: float, target_s: float) -> None:
        left_s = started_s + target_s - time.monotonic()
        self._iterations += 1
        if left_s > 0:
            time.sleep(left_s)
        else:
            self._late += 1
        if self._iterations % _REPORT_EVERY == 0:
            print(f"paced: {self._iterations} iterations, {self._late} slower than asked", flush=True)


class CalmScheduler(Scheduler):
    """A scheduler whose engine does not spin while it waits for the worker, which costs a core that the others need."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _calm()
        super().__init__(*args, **kwargs)


def _calm() -> None:
    spin = shm_broadcast.SpinCondition.wait

    def wait(self: Any, timeout_ms: float | None = None) -> Any:
        self.busy_loop_s = 0.0
        # Without an upper bound a notification that gets lost (a queue of one) holds a step up for five seconds.
        return spin(self, _POLL_MS if timeout_ms is None else min(timeout_ms, _POLL_MS))

    shm_broadcast.SpinCondition.wait = wait


class SlotsScheduler(CalmScheduler):
    """A scheduler whose number of slots follows SLOTS_FILE. What runs goes on; a missing file means all slots."""

    _file = os.environ.get("SLOTS_FILE")
    _seen_ns: int | None = None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Look at the file, then schedule."""
        if self._file:
            try:
                changed_ns = os.stat(self._file).st_mtime_ns  # noqa: PTH116 - each iteration pays for it
                if changed_ns != self._seen_ns:
                    with open(self._file) as file:  # noqa: PTH123
                        slots = int(file.read())
                    self._seen_ns = changed_ns
                    self.max_num_active_reqs = min(slots, self.max_num_running_reqs)
            except (OSError, ValueError):
                pass  # not there, or half written: at the next iteration
        return super().schedule(*args, **kwargs)
