"""Advice on small demands: what it finds holds, what it writes is accepted, what cannot be served is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from policies.api import ServiceClass
from sim.cli import app
from sim.errors import InputError
from sim.live.gateway.config_file import load_config
from sim.records.result_folder import check_replaceable
from sim.scenario.load import load_scenario, parse_scenario
from sim.scenario.profile import load_profile
from sim.studies.advise.advise import advise
from sim.studies.advise.baselines import SHARES, Promise, _least, promise_of, squeezed
from sim.studies.advise.capacity import tokens_per_s, use_of
from sim.studies.advise.demand import at_factor, from_scenario, from_traces
from sim.studies.advise.model import Measured, Objective, PolicyAdvice, Setting, Terms, counted
from sim.studies.advise.reasons import as_good, promise_words, survey_words
from sim.studies.advise.recheck import advice, recheck, recheck_both, table
from sim.studies.advise.search import _least_strict, advise_policy, ladder, lower_bound
from sim.studies.advise.survey import survey
from sim.studies.advise.trial import Bench, enough_slots
from workloads.requests import Demand

PROFILE = {
    "name": "small", "max_num_seqs": 16, "max_num_batched_tokens": 1024, "kv_blocks": 2000,
    "step_time": {"kind": "linear", "base_s": 0.02, "per_prefill_token_s": 1e-4, "per_decode_sequence_s": 1e-3},
}  # fmt: skip
SCENARIO: dict[str, Any] = {
    "version": 1, "seed": 5, "horizon_s": 60, "warmup_s": 5,
    "pool": {
        "profile": PROFILE, "replicas": 1,
        "entitlements": [
            {"name": "chat", "service_class": "elastic", "ttft_slo_s": 1.0}, {"name": "batch", "service_class": "spot"},
        ],
    },
    "workload": [
        {"entitlement": "chat", "arrivals": {"kind": "poisson", "rate_per_s": 2}, "prompt_tokens": 100,
         "output_tokens": 40},
        {"entitlement": "batch", "arrivals": {"kind": "poisson", "rate_per_s": 8}, "prompt_tokens": 400,
         "output_tokens": 60},
    ],
    "policies": ["token-pool"],
}  # fmt: skip
TERMS = Terms(share=0.5, confidence=0.8, search_draws=2, check_draws=6)


ANY_REST = replace(TERMS, rest=0.0)


def tree() -> dict[str, Any]:
    return from_scenario(parse_scenario(SCENARIO, "test"), [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return advice as the command leaves it."""
    here = tmp_path_factory.mktemp("advice")
    (here / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
    done = CliRunner().invoke(app, [
        "advise", str(here / "s.yaml"), "--out", str(here / "a"), "--policy", "token-pool", "--policy", "none",
        "--draws", "2", "--check-draws", "6", "--share", "0.5", "--confidence", "0.8",
    ], catch_exceptions=False)  # fmt: skip
    assert done.exit_code == 0, done.output
    return here / "a"


def test_the_rest_is_limited_so_that_the_objective_holds(folder: Path) -> None:
    found = json.loads((folder / "advice.json").read_text())
    assert found["best"]["policy"] == "token-pool"
    assert found["best"]["setting"]["limit_share"] is not None
    (none,) = (one for one in found["answers"] if one["policy"] == "none")
    assert none["setting"] is None  # with nobody held back chat waits behind batch
    assert "at 1.2x" in none["why_not"]
    assert all(check["good"] for check in found["best"]["checks"])
    text = (folder / "advice.md").read_text()
    for word in ("binds", "headroom", "the next tenant, one like chat", "only replica lost", "plain limits do not"):
        assert word in text


def test_the_gateway_accepts_what_is_written(folder: Path) -> None:
    done = CliRunner().invoke(app, ["serve", str(folder / "gateway.yaml"), "--check"], catch_exceptions=False)
    assert (done.exit_code, "good; 1 upstreams, 2 keys" in done.output) == (0, True), done.output
    assert (folder / "keys.yaml").stat().st_mode & 0o077 == 0
    text = (folder / "gateway.yaml").read_text()
    assert text.count("\npolicy: token-pool\n") == 1  # defaults are not spelled out
    assert "null" not in text
    watching = text.replace("\npolicy: token-pool\n", "\n").replace("#   ", "")
    (folder / "watch.yaml").write_text(watching)
    config = load_config(folder / "watch.yaml")
    assert (config.policy.name, [one.name for one in config.shadow]) == ("none", ["token-pool"])
    keys = yaml.safe_load((folder / "keys.yaml").read_text())
    assert set(keys) == {"chat", "batch"}
    assert all(key not in (folder / "gateway.yaml").read_text() for key in keys.values())


def test_the_scenario_says_the_same_as_the_gateway(folder: Path) -> None:
    scenario = load_scenario(folder / "scenario.yaml")
    gateway = yaml.safe_load((folder / "gateway.yaml").read_text())
    assert [one.name for one in scenario.pool.entitlements] == [one["name"] for one in gateway["pool"]["entitlements"]]
    for mine, theirs in zip(scenario.pool.entitlements, gateway["pool"]["entitlements"], strict=True):
        assert str(mine.service_class) == theirs["service_class"]
        assert mine.baseline.slots == theirs.get("baseline", {}).get("slots")
        assert mine.limit.slots == theirs.get("limit", {}).get("slots")


def test_fresh_draws_hold_as_often_as_was_stated(folder: Path) -> None:
    now, stressed = recheck_both(folder, draws=12, seed=99)
    assert now.held / now.draws >= now.stated > 0
    assert (now.draws, now.factor, stressed.factor) == (12, 1.0, 1.2)
    assert stressed.worst_attained < now.worst_attained
    assert now.good
    assert not replace(now, held=1).good
    lines = table([("small", folder, [now, replace(stressed, held=0, stated=0.5)])]).splitlines()
    assert f"{now.held} of 12;" in lines[2]
    assert "0 of 12 **fewer**;" in lines[2]
    assert "`token-pool`, 1 replica" in lines[2]


def test_a_worse_setting_is_found_out(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("advice.json", "scenario.yaml"):
        (broken / name).write_text((folder / name).read_text())
    text = yaml.safe_load((broken / "scenario.yaml").read_text())
    for one in text["pool"]["entitlements"]:
        one.pop("limit", None)
    (broken / "scenario.yaml").write_text(yaml.safe_dump(text))
    found = recheck(broken, tmp_path / "runs", draws=6, seed=99)
    assert found.held / found.draws < found.stated


@pytest.mark.parametrize(
    ("changed", "terms", "problem"),
    [
        ({"ttft_slo_s": 0.02}, TERMS, "no number of replicas serves it"),
        ({"ttft_slo_s": 1.0}, Terms(target=0.999999, share=0.5, confidence=0.8, search_draws=2, check_draws=6),
         "nothing that was tried meets the objectives"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_why(
    tmp_path: Path, changed: dict[str, Any], terms: Terms, problem: str
) -> None:
    asked = tree()
    asked["pool"]["entitlements"][0] |= changed
    if "nothing" in problem:
        asked["workload"][0]["arrivals"]["rate_per_s"] = 60.0
    with pytest.raises(InputError, match=problem) as found:
        advise(asked, [], terms, tmp_path / "runs", policies=("none",))
    assert "\n" not in str(found.value)


def test_an_empty_demand_is_refused(tmp_path: Path) -> None:
    asked = tree()
    for workload in asked["workload"]:
        workload["arrivals"]["rate_per_s"] = 1e-9
    with pytest.raises(InputError, match="the demand is empty"):
        advise(asked, [], TERMS, tmp_path / "runs", policies=("none",))


def test_lower_bounds_are_those_of_clopper_and_pearson() -> None:
    assert lower_bound(30, 30, 0.9) == pytest.approx(0.1 ** (1 / 30))
    assert lower_bound(0, 30, 0.9) == 0
    p = lower_bound(27, 30, 0.95)  # 27 or more of 30 are then seen in 5 % of all cases
    from math import comb

    assert sum(comb(30, k) * p**k * (1 - p) ** (30 - k) for k in range(27, 31)) == pytest.approx(0.05)


def test_enough_slots_are_those_of_erlang() -> None:
    asked = tree()
    asked["horizon_s"] = 2000.0
    slots = enough_slots(asked, ["chat"])["chat"]
    hold_s = 0.02 + 0.016 - 0.001 + 100 * 1e-4 + 39 * (0.02 + 0.016)
    load = 2 * 1.2 * hold_s
    blocked = [1.0]
    for n in range(1, 40):
        blocked.append(load * blocked[-1] / (n + load * blocked[-1]))
    assert blocked[int(slots)] < 0.015
    assert blocked[int(slots) - 2] > 0.007


def test_capacity_is_what_full_batches_make_of_a_mix() -> None:
    profile = parse_scenario(SCENARIO, "test").pool.profile
    rate = tokens_per_s(profile, 100, 40)
    prefill_s, decode_s = 16 * 99 * 1e-4, 40 * (0.02 + 0.016)
    assert rate == pytest.approx(16 * 140 / (prefill_s + decode_s))
    ones = np.full(100, 100), np.full(100, 40)
    use = use_of(profile, 2, [Demand(np.linspace(0, 50, 100), *ones, ones[1])], 50.0)
    assert use.prefill == pytest.approx(1.0 * 99 * 1e-4)
    assert use.decode == pytest.approx(1.0 * 40 * 0.036 / 16)
    assert use.binds == "decode"


def test_a_demand_is_scaled_by_its_rate() -> None:
    faster = at_factor(tree(), 1.5)
    assert [one["arrivals"]["rate_per_s"] for one in faster["workload"]] == [3.0, 12.0]
    assert [one["arrivals"]["rate_per_s"] for one in tree()["workload"]] == [2.0, 8.0]
    recorded = {"workload": [{"name": "a", "arrivals": {"kind": "trace", "file": "x", "scale": 2.0}}]}
    assert at_factor(recorded, 1.5)["workload"][0]["arrivals"]["scale"] == 3.0


def test_steps_go_from_loose_to_strict_and_every_policy_has_some() -> None:
    from sim.scenario import plugins

    bench = Bench(tree(), {"chat": Objective("chat", 1.0)}, Path("nowhere"), baselines={"chat": 4.0})
    steps = ladder(bench, "token-pool", 2)
    assert steps[0].limit_share is None
    assert [one.limit_share for one in steps[1:8]] == sorted((one.limit_share for one in steps[1:8]), reverse=True)
    assert {one.service_class for one in steps} == {ServiceClass.ELASTIC, ServiceClass.GUARANTEED}
    for policy in plugins.POLICY_KINDS:
        found = ladder(bench, policy, 2)
        assert found, policy
        assert bench.scenario(policy, found[0]).pool.replicas == 2


def test_plain_limits_are_as_good_only_if_they_are() -> None:
    from sim.studies.advise.model import Check, PolicyAdvice

    good = Check(1.0, 6, 6, 0.7, True, "chat", 1.0)
    best = PolicyAdvice("token-pool", Setting(replicas=2), (good,), output_tokens_per_s=(100.0, 102.0, 98.0))
    assert as_good(replace(best, policy="none"), best)
    assert not as_good(replace(best, setting=Setting(replicas=3)), best)
    assert not as_good(replace(best, output_tokens_per_s=(80.0, 81.0, 79.0)), best)
    assert not as_good(replace(best, checks=(replace(good, good=False),)), best)
    assert Measured({"a": [1.0, 0.9], "b": [0.96, 1.0]}, {}, [1.0, 1.0], [1.0]).held(0.95) == 1


def test_a_log_becomes_a_demand_with_its_tenants_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"prompt_tokens": 50, "output_tokens": 20, "max_output_tokens": 64}
    tenants = ("blue", "red")
    lines = [json.dumps(row | {"time_ns": i * 10**9, "tenant": tenants[i % 2]}) for i in range(100)]
    path.write_text("\n".join(lines))
    found = from_traces(
        [str(path)], [Objective("red", 1.0)], load_profile("h100-llama-3.1-8b"), window_s=40.0, format_=None,
        from_s=None, seed=3,
    )  # fmt: skip
    assert [one["entitlement"] for one in found["workload"]] == ["blue", "red"]
    assert all(one["ask_max_tokens"] for one in found["workload"])
    assert found["pool"]["entitlements"][1]["ttft_slo_s"] == 1.0
    with pytest.raises(InputError, match="nobody of that name"):
        from_traces(
            [str(path)], [Objective("green", 1.0)], load_profile("h100-llama-3.1-8b"), window_s=40.0, format_=None,
            from_s=None, seed=3,
        )  # fmt: skip


def test_who_asks_outside_the_window_only_is_known_to_the_gateway_too(tmp_path: Path) -> None:
    """The busiest window has two of three tenants; the third must have a key, and be in nobody's way."""
    path = tmp_path / "mine.jsonl"
    busy = [{"time_ns": i * 10**9, "tenant": ("blue", "red")[i % 2]} for i in range(100)]
    late = [{"time_ns": (300 + 10 * i) * 10**9, "tenant": "green"} for i in range(3)]
    rows = [json.dumps(one | {"prompt_tokens": 50, "output_tokens": 20}) for one in busy + late]
    path.write_text("\n".join(rows))
    done = CliRunner().invoke(app, [
        "advise", str(path), "--objective", "red=2", "--window-s", "60", "--replicas", "1", "--policy", "token-pool",
        "--draws", "2", "--check-draws", "6", "--share", "0.5", "--confidence", "0.8", "--out", str(tmp_path / "a"),
    ], catch_exceptions=False)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert set(yaml.safe_load((tmp_path / "a" / "keys.yaml").read_text())) == {"blue", "green", "red"}
    said = (tmp_path / "a" / "advice.md").read_text()
    assert said.startswith("# Advice: token-pool, 1 replica of h100-llama-3.1-8b\n")
    assert f"For {path} from " in said
    assert " s. Nothing was asked there by green.\n" in said
    scenario = load_scenario(tmp_path / "a" / "scenario.yaml")
    assert [one.name for one in scenario.pool.entitlements] == ["blue", "green", "red"]
    assert [one.entitlement for one in scenario.workload] == ["blue", "red"]
    with pytest.raises(InputError, match="--objective green: asks for nothing in the window"):
        CliRunner().invoke(app, [
            "advise", str(path), "--objective", "green=2", "--window-s", "60", "--replicas", "1",
            "--out", str(tmp_path / "b"),
        ], catch_exceptions=False)  # fmt: skip


def test_advice_that_is_there_is_kept_unless_it_may_be_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(yaml.safe_dump(SCENARIO))
    mine = Path("o")
    mine.mkdir()
    (mine / "scenario.yaml").write_text("mine")
    done = CliRunner().invoke(app, ["advise", "s.yaml", "--out", "o"])
    assert "is there already" in str(done.exception)
    done = CliRunner().invoke(app, ["advise", "s.yaml", "--out", "o", "--overwrite"])
    assert "is no result" in str(done.exception)
    assert (mine / "scenario.yaml").read_text() == "mine"
    check_replaceable(folder)  # what advice wrote may be


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--objective", "chat"], "is none"),
        (["--objective", "chat=0"], "is none"),
        (["--objective", "chat=1:spot"], "is promised nothing"),
        (["--objective", "nobody=1"], "no such entitlement"),
        (["--replicas", "4..2"], "is no number of replicas"),
        (["--policy", "tokenpool"], "unknown policy"),
        (["--check-draws", "5"], "cannot show 90%"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(yaml.safe_dump(SCENARIO))
    done = CliRunner().invoke(app, ["advise", "s.yaml", "--out", "o", *arguments])
    assert isinstance(done.exception, InputError), done.output
    assert problem in str(done.exception)
    assert not Path("o").exists()


def test_the_loosest_that_meets_the_objectives_is_found_where_the_strictest_lets_in_too_little() -> None:
    runs = [Setting(replicas=1, limit_share=share) for share in (0.9, 0.6, 0.4, 0.25, 0.15, 0.08, 0.04, 0.02)]
    for first in range(len(runs)):
        found = _least_strict(runs, lambda setting, first=first: runs.index(setting) >= first)
        assert found == runs[first]
    assert _least_strict(runs, lambda _: False) is None


def test_counts_are_words_that_agree() -> None:
    assert str(Setting(replicas=1)).startswith("1 replica,")
    assert str(Setting(replicas=2)).startswith("2 replicas,")
    assert counted(1, "policy") + counted(3, "policy") == "1 policy3 policies"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    found = Bench(tree(), {"chat": Objective("chat", 1.0)}, tmp_path_factory.mktemp("bench"))
    found.baselines = enough_slots(tree(), ["chat"])
    return found


@pytest.fixture(scope="module")
def plain(bench: Bench) -> PolicyAdvice:
    return advise_policy(bench, "token-pool", ANY_REST)


def test_a_survey_finds_who_holds_and_keeps_to_its_runs(bench: Bench, plain: PolicyAdvice) -> None:
    before = bench.runs
    seen = survey(bench, ["none", "slo-feasible", "predictive-pool", "vtc"], plain, ANY_REST, 40)
    assert {"none"} <= set(seen.failed)  # batch alone fills the pool
    assert "slo-feasible" in [one.policy for one in seen.candidates]
    assert not seen.untried
    assert 4 <= seen.runs <= 40 + 2 * TERMS.search_draws
    assert bench.runs - before == seen.runs
    hurried = survey(bench, ["drr", "las", "bands"], plain, ANY_REST, 1)
    assert hurried.untried
    assert len(hurried.candidates) + len(hurried.failed) + len(hurried.untried) == 3
    words = " ".join(survey_words(replace(hurried, candidates=seen.candidates), plain, [plain]))
    assert "slo-feasible" in words
    assert "not tried, for want of runs" in words


def test_baselines_are_squeezed_to_what_still_holds(bench: Bench, plain: PolicyAdvice) -> None:
    assert plain.setting is not None
    found = squeezed(bench, plain, ANY_REST)
    assert found.setting is not None
    assert found.holds
    assert found.setting.baseline_share <= 1
    own = bench.scenario("token-pool", found.setting).pool.entitlements[0].spec().baseline.slots
    assert own == max(1, round(bench.baselines["chat"] * found.setting.baseline_share))
    words = promise_words(bench, found, promise_of(bench, "token-pool", found.setting))
    assert words.startswith("baselines: by themselves tenants need chat ")
    assert "asking for 2x as much" in words


@pytest.mark.parametrize(
    ("policy", "promise"),
    [
        ("token-pool", Promise.BASELINES), ("k8s-apf", Promise.BASELINES), ("rate-limit", Promise.PARAMETERS),
        ("class-slots", Promise.PARAMETERS), ("vtc", Promise.PARAMETERS), ("none", None), ("cap", None),
    ],
)  # fmt: skip
def test_what_a_policy_promises_by_is_its_own_claim_or_what_its_parameters_are_made_of(
    bench: Bench, policy: str, promise: Promise | None
) -> None:
    setting = Setting(replicas=1)
    found = promise_of(bench, policy, setting)
    assert found is promise
    words = promise_words(bench, PolicyAdvice(policy, setting), found)
    assert words.startswith({
        Promise.BASELINES: "baselines: ", Promise.PARAMETERS: f"promises: the parameters of {policy} ",
        None: f"nothing to squeeze: {policy} promises no entitlement anything",
    }[promise])  # fmt: skip


def test_parameters_that_are_made_of_promises_are_squeezed_too(bench: Bench) -> None:
    answer = advise_policy(bench, "class-slots", ANY_REST)
    assert answer.setting is not None
    found = squeezed(bench, replace(answer, checks=()), ANY_REST)
    assert found.checks == ()  # what does not hold is left as it is
    found = squeezed(bench, answer, ANY_REST)
    assert found.setting is not None
    assert found.setting.baseline_share < 1 or found is answer
    half = replace(answer.setting, baseline_share=0.4)
    shares = [bench.scenario("class-slots", one).policies[0].params.shares for one in (answer.setting, half)]  # type: ignore[attr-defined]
    assert sum(shares[1]) == pytest.approx(0.4 * sum(shares[0]), rel=1e-3)


def test_a_noisy_rest_is_more_of_the_rest_only(bench: Bench) -> None:
    scenario = bench.scenario("token-pool", Setting(replicas=1), noisy=2.0)
    rates = [one.arrivals.rate_per_s for one in scenario.workload]  # type: ignore[union-attr]
    assert rates == [2.0, 16.0]
    again = bench.measure("token-pool", Setting(replicas=1), factor=1.0, seed=9, draws=2, noisy=2.0)
    usual = bench.measure("token-pool", Setting(replicas=1), factor=1.0, seed=9, draws=2)
    assert again is not usual


def test_the_least_good_share_is_found_by_halves() -> None:
    for least in range(len(SHARES)):
        assert _least(lambda share, most=SHARES[least]: share >= most) == least


@pytest.mark.parametrize(("text", "said"), [
    (None, "cannot be read"), ("{", "is no JSON"), ("[]", "holds no advice"),
    ('{"best": null, "terms": {}}', "found nothing"),
])  # fmt: skip
def test_what_is_no_advice_is_not_rechecked(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "advice.json").write_text(text)
    with pytest.raises(InputError, match=said):
        advice(tmp_path)
