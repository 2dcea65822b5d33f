"""A step time interpolated from measured kernel times.

What an iteration runs falls into four parts, each measured on its own and summed over the model's layers: the dense
layers, whose time depends on the tokens of the iteration; what is done once per sampled sequence (logits, sampling);
the attention of prompts, by tokens and the context before them; and the attention of decodes, by batch and context.
Where prompts and decodes share an iteration, one attention kernel serves both, which is slower for decodes than their
own (they lose grouped queries and split KV): measured too, as the decodes beside the smallest prompt, and as the ratio
of the true time to the sum of the two parts.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from sim.engine.decode_curve import DecodeCurve
from sim.engine.experts import Experts
from sim.engine.interpolation import clamped, on_line, on_square, place
from sim.engine.links import Links

Knots = tuple[float, ...]
Row = tuple[float, ...]
Grid = tuple[Row, ...]

_LEAST_SHARE = 0.2  # of a lone prompt's attention, which several short prompts of as many tokens need at least
_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("dense_s", ("dense_tokens",)),
    ("sequence_s", ("sequences",)),
    ("decode_s", ("decode_batch", "decode_context")),
    ("prefill_s", ("prefill_tokens", "prefill_context")),
    ("beside_s", ("beside_batch", "beside_context")),
    ("mixed_ratio", ("mixed_tokens", "mixed_before", "mixed_batch", "mixed_context")),
)


class ExtrapolationWarning(UserWarning):
    """A step time was asked for an iteration outside what was measured."""


def _knots(what: str) -> dict[str, object]:
    return {"min_length": 2, "description": f"give ascending {what}, at least two"}


def _table(what: str) -> dict[str, object]:
    return {"min_length": 2, "description": f"give {what}, one for each knot"}


@dataclass(frozen=True, kw_only=True)  # no slots: the curves of batches are computed once and kept
class TableStepTime:
    """Duration interpolated from measured kernel times, all layers summed, in seconds."""

    kind: Literal["table"] = "table"
    dense_tokens: Knots = field(metadata=_knots("numbers of tokens in an iteration"))
    dense_s: Row = field(metadata=_table("seconds of the dense layers"))
    sequences: Knots = field(metadata=_knots("numbers of sampled sequences"))
    sequence_s: Row = field(metadata=_table("seconds of logits and sampling"))
    decode_batch: Knots = field(metadata=_knots("numbers of decoding sequences"))
    decode_context: Knots = field(metadata=_knots("KV entries of each"))
    decode_s: Grid = field(metadata=_table("rows of seconds of decode attention, by batch and context"))
    prefill_tokens: Knots = field(metadata=_knots("numbers of prompt tokens in an iteration"))
    prefill_context: Knots = field(metadata=_knots("numbers of tokens before them"))
    prefill_s: Grid = field(metadata=_table("rows of seconds of prompt attention, by tokens and context"))
    beside_batch: Knots = field(metadata=_knots("numbers of sequences that decode beside a prompt"))
    beside_context: Knots = field(metadata=_knots("KV entries of each"))
    beside_s: Grid = field(metadata=_table("rows of seconds of decode attention beside a prompt"))
    mixed_tokens: Knots = field(metadata=_knots("numbers of prompt tokens"))
    mixed_before: Knots = field(metadata=_knots("numbers of tokens before them"))
    mixed_batch: Knots = field(metadata=_knots("numbers of decoding sequences"))
    mixed_context: Knots = field(metadata=_knots("KV entries of each"))
    mixed_ratio: tuple[tuple[Grid, ...], ...] = field(
        metadata=_table("ratios of shared attention to the sum of its two parts")
    )
    base_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds to add to every iteration, e.g. 0.0005"}
    )
    per_prefill_iteration_s: float = field(
        default=0.0, metadata={"ge": 0, "description": "give seconds to add where prompts are computed, e.g. 0.004"}
    )
    skew: float = field(
        default=0.0,
        metadata={
            "ge": 0,
            "le": 1,
            "description": "give how far attention of uneven contexts goes from the mean to the longest, e.g. 0.05",
        },
    )
    saturating_sequences: float = field(
        default=0.0,
        metadata={
            "ge": 0,
            "description": "give how many sequences keep the memory busy, where attention reads each at its own pace, "
            "e.g. 7",
        },
    )
    unsplit_batch: int = field(
        default=0,
        metadata={"ge": 0, "description": "give the batch from which on attention does so, e.g. 25"},
    )
    scale: float = field(default=1.0, metadata={"gt": 0, "description": "give a factor on all kernel times, e.g. 1.0"})
    experts: Experts | None = field(
        default=None, metadata={"description": "give the times of experts, where they are not in dense_s"}
    )
    links: Links | None = field(
        default=None, metadata={"description": "give the collectives of several GPUs, e.g. {ranks: 2, ...}"}
    )

    def __post_init__(self) -> None:
        for name, axes in _AXES:
            for axis in axes:
                knots = getattr(self, axis)
                if any(a >= b for a, b in pairwise(knots)):
                    raise ValueError(f"{axis} does not ascend; sort it and leave each number once")
            wanted = tuple(len(getattr(self, axis)) for axis in axes)
            found = _shape(getattr(self, name))
            if found != wanted:
                raise ValueError(f"{name} is a table of {found}, its knots make {wanted}; give a value for each")
            if min(_flat(getattr(self, name))) <= 0:
                raise ValueError(f"{name} holds a number that is not above 0; give measured values")

    # ------------------------------------------------------------------------------------------------------ interface

    def iteration_s(
        self, prefill_tokens: int, prefill_pairs: float, decode_sequences: int, context_tokens: float
    ) -> float:
        """See `StepTime.iteration_s`."""
        if not prefill_tokens:
            return self._curve(decode_sequences).at_s(context_tokens)
        before = prefill_pairs / prefill_tokens - (prefill_tokens + 1) / 2
        attention_s = self._prefill_s(prefill_tokens, before)
        if decode_sequences:
            attention_s = self._mixed_s(attention_s, prefill_tokens, before, decode_sequences, context_tokens)
        tokens, sequences = prefill_tokens + decode_sequences, decode_sequences + 1
        dense_s = self._dense.get(tokens)
        if dense_s is None:
            dense_s = self._dense[tokens] = self._dense_s(tokens)
        sequence_s = self._sequence.get(sequences)
        if sequence_s is None:
            sequence_s = self._sequence[sequences] = self._sequence_s(sequences)
        kernels_s = self.base_s + self.per_prefill_iteration_s + self.scale * (dense_s + sequence_s + attention_s)
        return kernels_s if self.links is None else kernels_s + self.links.iteration_s(tokens)

    def decode_run_s(self, sequences: int, context_tokens: float, iterations: int, gain: float = 1.0) -> float:
        """See `StepTime.decode_run_s`."""
        if context_tokens / sequences + iterations * gain > self.decode_context[-1]:
            self._check("decode_context", context_tokens / sequences + iterations * gain)
        return self._curve(sequences).run_s(context_tokens, iterations, gain)

    def iterations_until(self, sequences: int, context_tokens: float, elapsed_s: float) -> int:
        """See `StepTime.iterations_until`."""
        return self._curve(sequences).until(context_tokens, elapsed_s)

    @property
    def measured_to(self) -> tuple[float, float]:
        """The tokens and the decoding sequences of the largest iterations that were measured."""
        return self.dense_tokens[-1], self.decode_batch[-1]

    @property
    def shares_experts(self) -> bool:
        """Whether experts are shared over ranks, so that an iteration hangs on the tokens of all of them."""
        return self.experts is not None and self.experts.ranks > 1

    def experts_s(self, tokens: float) -> float:
        """Return what of an iteration's seconds its experts take, where each rank brings so many tokens."""
        return 0.0 if self.experts is None else self.scale * self.experts.iteration_s(tokens)

    def lone_paces(self) -> float:
        """Return how many sequences keep the memory busy where attention reads each at its own pace, by these tables.

        That pace is of the kernel that serves prompts beside decodes, which does not split contexts: one sequence of
        the longest context. What the memory gives is what the largest batch takes for each of its contexts.
        """
        longest = min(self.decode_context[-1], self.beside_context[-1])
        pace_s = on_line(self.beside_s[0], place(self.beside_context, longest))
        share_s = on_line(self.decode_s[-1], place(self.decode_context, longest)) / self.decode_batch[-1]
        return max(1.0, pace_s / share_s)

    # ---------------------------------------------------------------------------------------------------------- parts

    @cached_property
    def _curves(self) -> dict[int, DecodeCurve]:
        return {}

    @cached_property
    def _warned(self) -> set[str]:
        return set()

    @cached_property
    def _log_axes(self) -> tuple[Row, Row, Row, Row]:
        """Return the knots of the ratio in the coordinates in which it is smooth."""
        axes = (self.mixed_tokens, self.mixed_before, self.mixed_batch, self.mixed_context)
        shifts = (0.0, 16.0, 0.0, 0.0)
        return tuple(tuple(math.log2(x + d) for x in axis) for axis, d in zip(axes, shifts, strict=True))  # type: ignore[return-value]

    def _curve(self, sequences: int) -> DecodeCurve:
        """Return the duration of a decode iteration of a batch, by the KV entries it reads."""
        curve = self._curves.get(sequences)
        if curve is None:
            if sequences > self.decode_batch[-1]:
                self._check("decode_batch", sequences)
            at = place(self.decode_batch, sequences)
            rest_s = self._dense_s(sequences) + self._sequence_s(sequences)
            fixed_s = self.base_s + (self.links.iteration_s(sequences) if self.links is not None else 0.0)
            columns = zip(*self.decode_s, strict=True)
            # Below the first batch and beyond the last, a straight line may fall under what one sequence takes.
            attention_s = [max(on_line(column, at), _LEAST_SHARE * min(column)) for column in columns]
            contexts = [sequences * each for each in self.decode_context]
            seconds = [fixed_s + self.scale * (rest_s + each) for each in attention_s]
            curve = self._curves[sequences] = DecodeCurve(sequences, contexts, seconds)
        return curve

    def _dense_s(self, tokens: int) -> float:
        if tokens > self.dense_tokens[-1]:
            self._check("dense_tokens", tokens)
        dense_s = on_line(self.dense_s, place(self.dense_tokens, tokens))
        return dense_s if self.experts is None else dense_s + self.experts.iteration_s(tokens)

    def _sequence_s(self, sequences: int) -> float:
        return on_line(self.sequence_s, place(self.sequences, sequences))

    def _prefill_s(self, tokens: int, before: float) -> float:
        """Return the attention of prompts alone.

        Several short prompts have fewer query-key pairs than one of as many tokens: ``before`` is then negative, and
        the time falls by as much for each missing key as it grows for each present one.
        """
        known = self._prompts.get(tokens)
        row, fall_s, _, _ = known if known is not None else self._prompt(tokens)
        if before > 0:
            if before > self.prefill_context[-1]:
                self._check("prefill_context", before)
            return on_line(row, place(self.prefill_context, before))
        if before == 0:
            return row[0]
        return max(_LEAST_SHARE * row[0], row[0] + fall_s * before)

    def _prompt(self, tokens: int) -> tuple[Row, float, int, float]:
        """Return, for a number of prompt tokens, what does not depend on the rest of the iteration.

        That is its attention by context, the seconds it grows with each key, and its place in the ratios.
        """
        i, along = clamped(self.prefill_tokens, tokens)
        pairs = zip(self.prefill_s[i], self.prefill_s[i + 1], strict=True)
        row = tuple(low + along * (high - low) for low, high in pairs)
        far = min(self.prefill_context[-1], max(self.prefill_context[1], self.prefill_tokens[-1] / 2))
        fall_s = (on_line(row, place(self.prefill_context, far)) - row[0]) / far
        known = self._prompts[tokens] = row, fall_s, *clamped(self._log_axes[0], math.log2(tokens))
        return known

    @cached_property
    def _prompts(self) -> dict[int, tuple[Row, float, int, float]]:
        return {}

    @cached_property
    def _dense(self) -> dict[int, float]:
        return {}

    @cached_property
    def _sequence(self) -> dict[int, float]:
        return {}

    def _mixed_s(self, prefill_s: float, tokens: int, before: float, sequences: int, context_tokens: float) -> float:
        """Return the attention of an iteration in which prompts and decodes share a kernel."""
        context = context_tokens / sequences
        if context > self.beside_context[-1]:
            self._check("beside_context", context)
        beside, ratio = self._beside(sequences)
        axes = self._log_axes
        _, _, i, along = self._prompts[tokens]
        j, along_before = clamped(axes[1], math.log2(before + 16.0)) if before > 0 else (0, 0.0)
        k, along_context = clamped(axes[3], math.log2(context))
        share = on_square(ratio[i], j, along_before, k, along_context)
        if along:
            share += along * (on_square(ratio[i + 1], j, along_before, k, along_context) - share)
        return (prefill_s + on_line(beside, place(self.beside_context, context))) * share

    def _beside(self, sequences: int) -> tuple[Row, list[Grid]]:
        """Return, for a batch, its attention beside a prompt by context, and the ratio by the other three axes."""
        known = self._batches.get(sequences)
        if known is None:
            i, along = place(self.beside_batch, sequences)
            row = tuple(a + along * (b - a) for a, b in zip(self.beside_s[i], self.beside_s[i + 1], strict=True))
            i, along = clamped(self._log_axes[2], math.log2(sequences))
            ratio = [
                tuple(
                    tuple(a + along * (b - a) for a, b in zip(by_batch[i], by_batch[i + 1], strict=True))
                    for by_batch in by_before
                )
                for by_before in self.mixed_ratio
            ]
            known = self._batches[sequences] = row, ratio
        return known

    @cached_property
    def _batches(self) -> dict[int, tuple[Row, list[Grid]]]:
        return {}

    def _check(self, axis: str, value: float) -> None:
        """Warn, once an axis, that ``value`` lies beyond the measurements."""
        knots = getattr(self, axis)
        if axis not in self._warned:
            self._warned.add(axis)
            warnings.warn(
                f"step time extrapolates: {axis} {value:g} is outside the measured {knots[0]:g} to {knots[-1]:g}",
                ExtrapolationWarning,
                stacklevel=2,
            )


def _shape(table: Any) -> tuple[int, ...]:
    """Return the lengths of a nested tuple, level by level; a ragged one gives the first row's, then fails below."""
    if not isinstance(table, tuple):
        return ()
    inner = {_shape(row) for row in table}
    return (len(table), *inner.pop()) if len(inner) == 1 else (len(table), -1)


def _flat(table: Any) -> list[float]:
    return [x for row in table for x in _flat(row)] if isinstance(table, tuple) else [table]
