"""A request inside a replica, and the states it goes through."""

from __future__ import annotations

from typing import Final

from policies.native import mypyc_attr
from workloads.requests import Prefix

WAITING: Final = 0
PREFILL: Final = 1
DECODE: Final = 2
ENDED: Final = 3
NEVER_S: Final = float("inf")


@mypyc_attr(allow_interpreted_subclasses=True, acyclic=True)
class EngineRequest:
    """A request inside a replica.

    Attributes
    ----------
    prompt_tokens, output_tokens : what it brings and where it ends.
    priority : the engine's, lower first.
    submitted_s, order : when it came, and the number of its submission, the last tie-break.
    target_tokens : tokens to compute before the next output token: the prompt, plus output that was recomputed away.
    computed_tokens : how many of those are computed, while in PREFILL.
    outputs : output tokens at ``base_clock``; while in DECODE one more for every tick of the replica's clock since.
    ticket : number of its entry in the heap of ends.
    place : its place in the order of admission, with async scheduling and where prefixes are cached.
    preemptions : how often it lost its KV blocks.
    aborted : its client is gone; it emits nothing more.
    prefix : the lines of text that its tokens run through, (name, tokens from the start to the line's end) each; equal
        names mean equal text up to there. What is not covered is its own. None: all is.
    cached_tokens : tokens of its prompt that were found in the KV cache when it was first admitted; -1 before.
    due_s : when the first output token is due, for schedulers that go by deadlines; infinity for never.
    stops : it ends by a stop token, which an engine does not foresee as it does the limit of a request's length.
    adapter : the model that it asks for, where a replica has adapters; empty for the base model.
    transferred : its prompt was computed elsewhere and its KV cache came over; see `sim.cluster.disaggregated`.
    """

    __slots__ = (
        "aborted",
        "adapter",
        "base_clock",
        "cached_tokens",
        "computed_tokens",
        "due_s",
        "order",
        "output_tokens",
        "outputs",
        "place",
        "preemptions",
        "prefix",
        "priority",
        "prompt_tokens",
        "state",
        "stops",
        "submitted_s",
        "target_tokens",
        "ticket",
        "transferred",
    )

    place: int

    def __init__(self, prompt_tokens: int, output_tokens: int, priority: int = 0) -> None:
        self.prompt_tokens = self.target_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.submitted_s = 0.0
        self.state = WAITING
        self.order = self.computed_tokens = self.outputs = self.base_clock = self.preemptions = 0
        self.ticket = self.cached_tokens = -1
        self.due_s = NEVER_S
        self.prefix: Prefix | None = None
        self.adapter = ""
        self.aborted = self.transferred = self.stops = False

    def begin_again(self) -> None:
        """Forget what a lost replica had computed, to be submitted to another."""
        self.target_tokens = self.prompt_tokens
        self.state = WAITING
        self.computed_tokens = self.outputs = self.base_clock = 0
        self.ticket = self.cached_tokens = -1
        self.transferred = False
