"""What an arrival law or a client is written with."""

from __future__ import annotations

from workloads.arrivals import MAX_ARRIVALS, Arrivals
from workloads.clients import Chance, Client
from workloads.generate import Interactive, Recorded
from workloads.points import cut, points
from workloads.requests import Demand, Floats, Ints, Replayed, Streams

__all__ = [
    "MAX_ARRIVALS", "Arrivals", "Chance", "Client", "Demand", "Floats", "Interactive", "Ints", "Recorded", "Replayed",
    "Streams", "cut", "points",
]  # fmt: skip
