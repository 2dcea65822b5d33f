"""Fields that change no run by themselves, each with the reason: what says something, and what can only refuse."""

from __future__ import annotations

_SAYS_WHERE_FROM = "says where a profile's numbers come from: tokenpools list profiles, calibrate and reports show it"
_ONE_VALUE = "has one value, which names the product's version that the preset stands for"
_NAMES = "others refer to it by this name: another name alone is refused, and one for all is the same pool"
_PICTURE = "shades and labels a stretch of time in figures (tests/analysis)"

SAYS: dict[str, str] = {
    "Calibration.confidence": _SAYS_WHERE_FROM, "Calibration.date": _SAYS_WHERE_FROM,
    "Calibration.engine": _SAYS_WHERE_FROM, "Calibration.held_out_error": _SAYS_WHERE_FROM,
    "Calibration.measurements": _SAYS_WHERE_FROM, "Calibration.method": _SAYS_WHERE_FROM,
    "Calibration.noise_floor": _SAYS_WHERE_FROM, "Profile.error": _SAYS_WHERE_FROM, "Profile.name": _SAYS_WHERE_FROM,
    "Profile.source": _SAYS_WHERE_FROM,
    "Phase.from_s": _PICTURE, "Phase.label": _PICTURE, "Phase.until_s": _PICTURE, "Scenario.phases": _PICTURE,
    "Scenario.title": "heads reports and figures", "Scenario.description": "tokenpools list scenarios shows it",
    "Scenario.scored": "tells a tournament whose attainment counts (tests/studies)",
    **{
        f"{preset}.version": _ONE_VALUE for preset in (
            "AzurePtu", "Bedrock", "DataRobot", "Dynamo", "EnvoyAiGateway", "K8sApf", "Kthena", "Kuadrant", "LiteLlm",
            "LlmD", "LlmDFlowControl", "Smg", "SmgTenants",
        )
    },
}  # fmt: skip
"""What is for readers."""

REFUSES: dict[str, str] = {
    "Bands.occupancy": "said by validate and run: saturation decides how much is let in",
    "Concur.occupancy": "refused: the number of agents decides",
    "PolyServe.occupancy": "refused: objectives decide",
    "Bands.queue_tokens": "refused: each band has a queue of queue_requests",
    "ClassSlots.queue_requests": "refused: each class has its own",
    "ClassSlots.queue_tokens": "refused: each class has its own",
    "ClassSlots.timeout_s": "refused: each class has its own",
    "Columns.request_id": "rows whose ids repeat are refused",
    "Columns.turn": "refused: a replay has no use for it",
    "Entitlement.name": _NAMES, "Group.name": _NAMES, "PoolKey.name": _NAMES, "PoolKey.entitlement": _NAMES,
    "Workload.key": "another key of the entitlement is another limit; what opens another entitlement is refused",
    "Experts.ranks": "has to agree with data_parallel",
    "Physics.hardware": "a step time that it cannot reach is refused",
    "Physics.work": "a step time that it cannot reach is refused",
    "Profile.physics": "a step time that it cannot reach is refused",
    "Pool.gpus_per_replica": "follows from profile.gpus; another number is refused (tests/scenario)",
    "Pool.count_use": "refused in a scenario; a gateway sets it where it keeps accounts",
    "Pool.oversubscribed": "baselines above the pool are refused without it",
    "Scenario.version": "another is refused",
    "ServeGen.folder": "another folder is another workload; one that is not there is refused",
    "Trace.file": "another file is another workload; one that is not there is refused",
    "Trace.format": "a file that is not of it is refused; left out, it is recognised",
    "Trace.origin": "refused where times are no dates (tests/workloads/test_trace.py has one)",
    "Trace.service": "refused without a column of services, and chooses rows by it",
    "Trace.tenant": "refused without a column of tenants, and chooses rows by it",
    "Trace.unanswered_output_tokens": "of logs alone, refused elsewhere (tests/workloads/test_logs.py)",
    "Trace.unanswered_prompt_tokens": "of logs alone, refused elsewhere (tests/workloads/test_logs.py)",
}
"""What decides whether a file is taken."""

SERVED: dict[str, str] = {
    "ServeConfig.version": "another is refused",
    "ApiKey.name": "logs, metrics and limits name the key by it",
}
"""Fields of a gateway's configuration of which settings and core show nothing."""
