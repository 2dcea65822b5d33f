"""What a profile says of its GPUs: tensor, pipeline, data and expert parallelism, and whether that goes together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sim.scenario.registered_types import MisfitError

if TYPE_CHECKING:
    from sim.engine.disaggregation import Disaggregated
    from sim.engine.speculation import Speculation


class Spread(Protocol):
    """What of a profile says how an engine is spread over GPUs, and what that leaves out."""

    gpus: int
    tensor_parallel: int | None
    pipeline_parallel: int
    pipeline_transfer_s: float
    data_parallel: int
    expert_parallel: bool
    async_scheduling: bool
    prefix_caching: bool
    speculation: Speculation | None
    disaggregated: Disaggregated | None
    step_time: Any

    @property
    def scheduling(self) -> str:
        """The scheduler's name."""
        ...


def gpus_of(profile: Spread) -> int:
    """Return the GPUs that a profile's parallelism needs, if it says of how many GPUs or stages it is; else its own."""
    if profile.tensor_parallel is None and profile.pipeline_parallel == 1:
        return max(profile.gpus, profile.data_parallel)
    return (profile.tensor_parallel or 1) * profile.pipeline_parallel * profile.data_parallel


def check_parallelism(profile: Spread) -> None:
    """Refuse what does not go together.

    Raises
    ------
    MisfitError : with the field, what it contradicts and the fix.
    """
    _check_pipeline(profile)
    _check_ranks(profile)
    _check_experts(profile)
    _check_gpus(profile)


def _check_gpus(profile: Spread) -> None:
    stages, ranks, tensor = profile.pipeline_parallel, profile.data_parallel, profile.tensor_parallel
    if tensor is not None and profile.gpus != tensor * stages * ranks:
        raise MisfitError(
            "gpus",
            f"{profile.gpus} beside tensor_parallel {tensor}, pipeline_parallel {stages} and data_parallel {ranks}",
            f"give {tensor * stages * ranks}, or leave it out",
        )
    if profile.gpus < ranks:
        problem = f"{profile.gpus} beside data_parallel: {ranks}, and each rank has a GPU of its own"
        raise MisfitError("gpus", problem, f"give {ranks} or a multiple, or leave it out")
    if profile.gpus % ranks:
        raise MisfitError("gpus", f"{profile.gpus} do not divide among {ranks} ranks", "give a multiple")
    if stages > 1 and profile.gpus % (ranks * stages):
        raise MisfitError("gpus", f"{profile.gpus} do not divide among {stages} stages", "give a multiple")
    links = getattr(profile.step_time, "links", None)
    if links is not None and profile.gpus < links.ranks:
        raise MisfitError("gpus", f"{profile.gpus}, and step_time.links join {links.ranks}", f"give {links.ranks}")
    if tensor is not None and links is not None and links.all_reduces and links.ranks != tensor:
        raise MisfitError(
            "tensor_parallel", f"{tensor}, and step_time.links are of {links.ranks} ranks",
            f"give {links.ranks}, or links of {tensor}",
        )  # fmt: skip


def _check_pipeline(profile: Spread) -> None:
    stages = profile.pipeline_parallel
    if stages == 1:
        if profile.pipeline_transfer_s:
            raise MisfitError(
                "pipeline_transfer_s", "given with one stage, which sends nothing on", "give pipeline_parallel, e.g. 2"
            )
        return
    for option, given in (
        ("async_scheduling", profile.async_scheduling),
        ("prefix_caching", profile.prefix_caching),
        ("speculation", profile.speculation is not None),
        ("disaggregated", profile.disaggregated is not None),
        ("expert_parallel", profile.expert_parallel),
        ("scheduling", profile.scheduling in ("fair-batching", "flow-prefill")),
    ):
        if given:
            problem = f"given beside pipeline_parallel ({stages}), where it is not modelled"
            raise MisfitError(option, problem, "leave one of them out")


def _check_ranks(profile: Spread) -> None:
    ranks = profile.data_parallel
    if ranks == 1:
        if profile.expert_parallel:
            raise MisfitError(
                "expert_parallel", "true with one rank (data_parallel: 1), which has nobody to share with",
                "give data_parallel, e.g. 2, or leave it out",
            )  # fmt: skip
        return
    for option, given in (
        ("disaggregated", profile.disaggregated is not None),
        ("scheduling", profile.scheduling == "flow-prefill"),
    ):
        if given:
            raise MisfitError(option, f"given beside data_parallel ({ranks}), which has none", "leave one out")


def _check_experts(profile: Spread) -> None:
    """Refuse a table whose experts are shared by other ranks than the profile's, or by none."""
    step = profile.step_time
    ranks = profile.data_parallel if profile.expert_parallel else 1
    if step.kind != "table":
        return
    said = f"data_parallel: {ranks} and expert_parallel: true" if ranks > 1 else "expert_parallel: false"
    shared = {} if step.experts is None else {"experts": step.experts.ranks}
    if step.links is not None and step.links.all_to_alls:
        shared["links"] = step.links.ranks
    for table, found in shared.items():
        if found != ranks:
            fix = f"give data_parallel: {found} and expert_parallel: true" if found > 1 else "leave expert_parallel out"
            raise MisfitError(f"step_time.{table}.ranks", f"{found} beside {said}", f"{fix}, or a table of {ranks}")
