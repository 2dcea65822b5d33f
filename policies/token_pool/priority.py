"""Equations 1 to 3 of arXiv 2603.00356: priority, debt and burst. Pure numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from policies.api import ServiceClass

CLASS_WEIGHT: Mapping[ServiceClass, float] = MappingProxyType({
    ServiceClass.DEDICATED: 1000.0, ServiceClass.GUARANTEED: 1000.0, ServiceClass.ELASTIC: 100.0,
    ServiceClass.SPOT: 1.0, ServiceClass.PREEMPTIBLE: 0.1,
})  # fmt: skip
"""w_class, one for each service class [paper]."""

CLASS_RANK: Mapping[ServiceClass, int] = MappingProxyType({
    ServiceClass.DEDICATED: 3, ServiceClass.GUARANTEED: 3, ServiceClass.ELASTIC: 2, ServiceClass.SPOT: 1,
    ServiceClass.PREEMPTIBLE: 0,
})  # fmt: skip
"""The order of the classes by itself, for rules that put it before the weight [choice]."""


def weight(
    *, class_weight: float, slo_s: float, mean_slo_s: float, burst: float, debt: float,
    alpha_slo: float, alpha_burst: float, alpha_debt: float, debt_factor_floor: float,
) -> float:
    """Return w_e, the priority of an entitlement (equation 1).

    w_e = w_class * 1/(1 + a_slo * slo_e/mean_slo) * 1/(1 + a_burst * b_e) * (1 + a_debt * d_e)

    Parameters
    ----------
    slo_s, mean_slo_s : the entitlement's and the pool's mean service objective, in seconds.
    burst, debt : b_e and d_e, without unit.
    debt_factor_floor : least value of the last factor, which a large negative debt would turn negative [choice].
    """
    urgency = 1 / (1 + alpha_slo * slo_s / mean_slo_s)
    restraint = 1 / (1 + alpha_burst * burst)
    return class_weight * urgency * restraint * max(debt_factor_floor, 1 + alpha_debt * debt)


def debt_gap(
    promised_tokens_per_s: float, actual_tokens_per_s: float, wanted_tokens_per_s: float | None = None
) -> float:
    """Return g_e, the share of the promise that was not delivered; negative above it (equation 2).

    g_e = (lambda_e - hat_lambda_e) / lambda_e

    Parameters
    ----------
    promised_tokens_per_s : lambda_e, above 0.
    wanted_tokens_per_s : what was asked for, where nobody is owed more than that: the idle run no debt [choice].
    """
    owed = promised_tokens_per_s
    if wanted_tokens_per_s is not None and wanted_tokens_per_s < owed:
        owed = wanted_tokens_per_s
    return (owed - actual_tokens_per_s) / promised_tokens_per_s


def burst_excess(used_and_promised: Iterable[tuple[float, float]]) -> float:
    """Return delta_e, the use above the promise summed over the dimensions (equation 3).

    delta_e = sum over {lambda, chi, r} of max(0, hat_x_e / x_e - 1)

    Parameters
    ----------
    used_and_promised : hat_x_e and x_e of each dimension that is promised, x_e above 0.
    """
    return sum(max(0.0, used / promised - 1) for used, promised in used_and_promised)


def smoothed(old: float, sample: float, gamma: float) -> float:
    """Return gamma * old + (1 - gamma) * sample: one step of d_e (equation 2) or b_e (equation 3)."""
    return gamma * old + (1 - gamma) * sample
