"""What advice leaves behind: a scenario, a gateway's configuration that `serve --check` accepts, keys, reasons."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from sim.errors import ScenarioError
from sim.live.gateway.authentication import hashed, new_key
from sim.live.gateway.config_file import parse_config
from sim.live.gateway.core_from_config import make_core
from sim.live.gateway.settings_from_config import make_settings
from sim.records.result_folder import replace_file
from sim.scenario.load import parse_scenario
from sim.scenario.profile import load_profile, shipped_profiles
from sim.scenario.shortest import shortest
from sim.studies.advise.model import Advice, Terms, counted
from sim.studies.advise.reasons import check_words

FILES = ("scenario.yaml", "gateway.yaml", "keys.yaml", "advice.md", "advice.json")
"""What is written beside the runs."""

_PORT, _ADMIN_PORT = 8080, 9090
_DRAWS = 10


def written(
    advice: Advice, terms: Terms, folder: Path, *, upstreams: Sequence[str], money: Sequence[str] = ()
) -> list[Path]:
    """Write the files and return their paths.

    Raises
    ------
    ScenarioError : a gateway would refuse the configuration: a mistake of ours, so nothing is written.
    """
    scenario = scenario_text(advice)
    gateway, keys = gateway_texts(advice, upstreams)
    report = report_text(advice, terms, money)
    data = json.dumps(_plain(advice, terms), indent=2, allow_nan=False) + "\n"
    found = dict(zip(FILES, (scenario, gateway, keys, report, data), strict=True))
    for name, text in found.items():
        replace_file(folder / name, text)
    (folder / "keys.yaml").chmod(0o600)
    return [folder / name for name in found]


def _yaml(tree: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(tree), sort_keys=False, width=118, allow_unicode=True)
    return text


def scenario_text(advice: Advice) -> str:
    """Return the scenario of the best policy, in as few fields as say the same."""
    whole = dict(advice.tree) | {"replications": _DRAWS}
    meant = parse_scenario(whole, "advice")
    named = whole | {"pool": dict(whole["pool"]) | {"profile": _profile_ref(whole["pool"]["profile"])}}
    short = shortest(named, lambda tree: _means(parse_scenario, tree, meant))
    first = "# Made by `tokenpools advise`; its reasons are in advice.md. Run it: tokenpools run scenario.yaml\n"
    return first + _yaml(short)


def _means(parse: Callable[[Mapping[str, Any], str], Any], tree: Mapping[str, Any], meant: Any) -> bool:
    try:
        return bool(parse(tree, "advice") == meant)
    except ScenarioError:
        return False


def _profile_ref(profile: Mapping[str, Any]) -> Any:
    """Return a profile's name where it is shipped as it is, else the profile."""
    name = profile.get("name")
    if name in shipped_profiles() and load_profile(str(name)).model_dump(mode="json") == profile:
        return name
    return dict(profile)


def gateway_texts(advice: Advice, upstreams: Sequence[str]) -> tuple[str, str]:
    """Return the configuration, with a key for each entitlement, and the keys themselves by entitlement.

    Raises
    ------
    ScenarioError : a gateway would refuse it.
    """
    tree = advice.tree
    pool = dict(tree["pool"]) | {"profile": _profile_ref(tree["pool"]["profile"])}
    (policy,) = tree["policies"]
    keys = {one["name"]: new_key() for one in tree["pool"]["entitlements"]}
    replicas = int(tree["pool"]["replicas"])
    urls = list(upstreams) or [f"http://127.0.0.1:{8000 + i}" for i in range(replicas)]
    config = {
        "version": 1,
        "listen": {"port": _PORT},
        "pool": pool,
        "policy": policy,
        "upstreams": [{"name": f"replica-{i}", "base_url": url} for i, url in enumerate(urls)],
        "keys": [
            {"name": f"{name}-key", "entitlement": name, "sha256": hashed(key).hex()} for name, key in keys.items()
        ],
        "admin": {"port": _ADMIN_PORT},
        "logs": {"style": "json"},
    }
    try:
        read = parse_config(json.loads(json.dumps(config)), "gateway.yaml")
        make_settings(read, "gateway.yaml")
        make_core(read)
    except ScenarioError as error:
        raise ScenarioError("gateway.yaml", "advise", str(error), "report it") from error
    first = (
        "# Made by `tokenpools advise`. Check it: tokenpools serve gateway.yaml --check. The keys that it knows by\n"
        "# their hashes are in keys.yaml, for clients and `tokenpools replay --keys`.\n"
    )
    short = {"version": 1, "listen": config["listen"]} | shortest(config, lambda tree: _means(parse_config, tree, read))
    return first + _with_watching(_yaml(short), short["policy"]), _yaml(keys)


def _short_policy(tree: Mapping[str, Any]) -> Any:
    """Return the policy with what is not its default."""
    meant = parse_scenario(tree, "advice")
    (policy,) = tree["policies"]
    return shortest(
        {"policy": policy}, lambda one: _means(parse_scenario, dict(tree) | {"policies": [one.get("policy")]}, meant)
    )["policy"]


def _with_watching(text: str, policy: Any) -> str:
    """Say above the policy what to write there to see what it would refuse, before it does."""
    shadow = yaml.safe_dump([policy], default_flow_style=True, width=10_000).strip()
    words = (
        "# To watch before it acts, put these two lines in place of `policy`; back again, SIGHUP lets it act:\n"
        f"#   policy: none\n#   shadow: {shadow}\n"
    )
    return text.replace("\npolicy:", f"\n{words}policy:", 1)


def report_text(advice: Advice, terms: Terms, money: Sequence[str] = ()) -> str:
    """Return the advice for people."""
    best = advice.best
    assert best.setting is not None
    state = (
        "These settings hold" if best.holds else "These settings hold at 1.0x of the demand, not at 1.2x"
        if best.holds_now else "These settings held in the search and **not** on fresh draws"
    )  # fmt: skip
    stated = min((check.at_least for check in best.checks if check.good), default=0.0)
    replicas = f"{counted(best.setting.replicas, 'replica')} of {advice.tree['pool']['profile']['name']}"
    lines = [
        f"# Advice: {best.policy}, {replicas}",
        "",
        *_demand_words(advice.tree),
        f"{state}: in at least {stated:.0%} of draws of this demand (with {terms.confidence:.0%} confidence) every "
        f"objective is met by {terms.target:.0%} of the requests it is for. "
        + "; ".join(map(check_words, best.checks)).replace("at", "At", 1) + ".",
        "",
        "| entitlement | class | objective | baseline | limit | refused at 1.0x |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for one in advice.tree["pool"]["entitlements"]:
        slo_s = one.get("ttft_slo_s")
        refused = best.refused.get(one["tenant"] or one["name"], 0.0)
        lines.append(
            f"| {one['name']} | {one['service_class']} | {'' if slo_s is None else f'{slo_s:g} s'} "
            f"| {_amount(one['baseline'])} | {_amount(one['limit'])} | {refused:.1%} |"
        )
    if best.policy != "token-pool":
        lines += ["", f"`{best.policy}` with: `{json.dumps(_short_policy(advice.tree))}`"]
    lines += ["", "## Why", "", *(f"- {reason}" for reason in advice.reasons)]
    for answer in advice.answers:
        lines += [f"- {answer.policy} stepped back from: {words}" for words in answer.stepped_back]
    if money:
        lines += ["", "## In money and units that are sold", "", *(f"- {line}" for line in money)]
    return "\n".join(lines) + "\n"


def _demand_words(tree: Mapping[str, Any]) -> list[str]:
    """Return which parts of which recordings this is for; nothing where the demand is none of recordings."""
    parts: dict[str, None] = {}
    for one in (workload["arrivals"] for workload in tree["workload"]):
        if one["kind"] == "trace" and one.get("from_trace_s") is not None:
            place = f"{one['file']} from {one['from_trace_s']:,.0f} to {one['until_trace_s']:,.0f} s"
            parts[place] = None
    if not parts:
        return []
    asking = {one["entitlement"] for one in tree["workload"]}
    quiet = [one["name"] for one in tree["pool"]["entitlements"] if one["name"] not in asking]
    others = f" Nothing was asked there by {', '.join(quiet)}." if quiet else ""
    return [f"For {' beside '.join(parts)}.{others}", ""]


def _amount(amounts: Mapping[str, Any]) -> str:
    words = {name: name.replace("_", " ") for name in amounts} | {"tokens_per_s": "tokens/s"}
    return ", ".join(
        f"{value:g} {'slot' if (name, value) == ('slots', 1) else words[name]}"
        for name, value in amounts.items() if value is not None
    )  # fmt: skip


def _plain(advice: Advice, terms: Terms) -> Any:
    """Return all of it as JSON's values."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return plain(asdict(advice) | {"terms": asdict(terms)})
