"""Faults that once lived, or are like those: planted by name (`mutants.py --named`), since a sample may miss them."""

from __future__ import annotations

from typing import NamedTuple


class Named(NamedTuple):
    """A fault: the area whose tests ought to notice, what it is, the file, the text and what it becomes."""

    area: str
    what: str
    path: str
    before: str
    after: str


_POLICY, _METERING = "policies/token_pool/policy.py", "policies/token_pool/metering.py"
_LOADGEN, _DRIVER = "sim/live/loadgen/open_loop.py", "sim/live/gateway/core_driver.py"
_DEPTH = "max(rate * rules.bucket_s, rules.max_request_tokens)"

NAMED: tuple[Named, ...] = (
    Named("token pools", "what ended reservations had held is not counted", _POLICY,
          "account.released_tokens += flight.reserved_tokens", "pass"),
    Named("token pools", "a refund is not credited", _POLICY,
          "bucket.settle(flight.reserved_tokens, used_tokens, now_s)", "pass"),
    Named("token pools", "a static bucket's depth the lesser of two", _METERING, _DEPTH, _DEPTH.replace("max", "min")),
    Named("token pools", "an allocated bucket's depth the lesser of two", "policies/token_pool/limits.py", _DEPTH,
          _DEPTH.replace("max", "min")),
    Named("token pools", "KV excess with the other sign, at admission", _POLICY,
          "tokens_over = reserved + need_tokens - capacity", "tokens_over = reserved + need_tokens + capacity"),
    Named("token pools", "KV excess with the other sign, at a loss", _POLICY,
          "tokens_over = reserved - capacity", "tokens_over = reserved + capacity"),
    Named("token pools", "the equaliser's sign", _METERING,
          "(max(0.0, account.gap) - mean)", "(max(0.0, account.gap) + mean)"),
    Named("core", "429 of an entitlement without a place is 430", "policies/core.py",
          "Reason.NOT_BOUND, 429,", "Reason.NOT_BOUND, 430,"),
    Named("core", "429 of every other refusal is 430", "policies/messages.py",
          "status: int = 429", "status: int = 430"),
    Named("replica", "the sign of the clock in partial progress", "sim/cluster/replica.py",
          "elapsed_s = (now_s - self._run_start_s)", "elapsed_s = (now_s + self._run_start_s)"),
    Named("replica", "a request's blocks are not counted after a pause", "sim/cluster/batch.py",
          "self.kv.used_blocks += blocks_of(computed_tokens, self._block_tokens)", "pass"),
    Named("statistics", "a tie's P value turned round, paired", "sim/analysis/statistics.py",
          "float(absolute.estimate == 0)", "float(absolute.estimate != 0)"),
    Named("statistics", "a tie's P value turned round, unpaired", "sim/analysis/statistics.py",
          "float(difference == 0)", "float(difference != 0)"),
    Named("statistics", "MSER's block sums with another power", "sim/analysis/statistics.py",
          "total**2 / left)", "total**3 / left)"),
    Named("load client", "the sign of the clock, reading it", _LOADGEN,
          "return self._loop.time() - self._origin_s", "return self._loop.time() + self._origin_s"),
    Named("load client", "the sign of the clock, setting an alarm", _LOADGEN,
          "self._loop.call_at(self._origin_s + at_s", "self._loop.call_at(self._origin_s - at_s"),
    Named("load client", "an answer does not free its patience's timer", _LOADGEN,
          "            timer.cancel()\n        self._follow", "            pass\n        self._follow"),
    Named("gateway", "timers are not cancelled when a gateway stops", _DRIVER,
          "self._stopped = True\n        self._cancel_timers()", "self._stopped = True"),
    Named("gateway", "timers are not cancelled when another tick is asked for", _DRIVER,
          "        self._cancel_timers()\n        if self._stopped:", "        if self._stopped:"),
    Named("gateway", "cancelled timers are kept", _DRIVER, "self._timers.clear()", "pass"),
)  # fmt: skip
