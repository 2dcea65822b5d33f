"""How a replica's layers are spread over pipeline stages; `sim.cluster.pipeline` runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The stages of one engine, each with an equal share of the layers.

    Attributes
    ----------
    count : how many there are, and how many batches may be under way at once.
    transfer_s : what a batch takes from one stage to the next, in seconds.
    """

    count: int
    transfer_s: float = 0.0

    def leaves_s(self, begins_s: float, lasts_s: float, free_s: list[float]) -> float:
        """Send a batch through all stages, and return when it leaves the last.

        Parameters
        ----------
        begins_s : when it is handed to the first stage.
        lasts_s : its iteration on all layers; each stage takes its share of that.
        free_s : when each stage is free; moved on to when this batch has left it.
        """
        at_s = begins_s
        share_s = lasts_s / self.count
        for stage in range(self.count):
            at_s = max(at_s, free_s[stage]) + share_s
            free_s[stage] = at_s
            if stage < self.count - 1:
                at_s += self.transfer_s
        return at_s
