"""Prompts and outputs that go together: a normal copula joins two laws without changing either."""

from __future__ import annotations

import math

import numpy as np

from workloads.requests import Floats

_TINY = 2.0**-53


def normal_cdf(z: Floats) -> Floats:
    """Return the standard normal distribution function."""
    half = -math.sqrt(0.5)
    return 0.5 * np.fromiter(map(math.erfc, (half * z).tolist()), np.float64, len(z))


def normal_quantile(u: Floats) -> Floats:
    """Return the inverse of `normal_cdf`; 0 and 1 are taken for the nearest doubles between them."""
    from statistics import NormalDist  # here, because most laws have no need of it

    inside = np.clip(u, _TINY, 1 - _TINY).tolist()
    return np.fromiter(map(NormalDist().inv_cdf, inside), np.float64, len(u))


def coupled(
    of_first: np.random.Generator, of_second: np.random.Generator, n: int, rank_correlation: float
) -> tuple[Floats, Floats]:
    """Return two columns of uniform numbers in [0, 1) with this rank correlation (Spearman's rho).

    1 puts both in the same order, -1 in opposite ones, 0 makes them independent. More numbers leave the first ones as
    they are, and the first column does not depend on the correlation.

    References
    ----------
    W. Kruskal, "Ordinal measures of association", JASA 53, 1958: for normal variables rho_S = 6/pi asin(r/2).
    """
    first = of_first.standard_normal(n)
    r = 2 * math.sin(math.pi * rank_correlation / 6)
    second = r * first + math.sqrt(max(0.0, 1 - r * r)) * of_second.standard_normal(n)
    return normal_cdf(first), normal_cdf(second)
