"""Each bad input: the exact place, the fix, and where it matters the problem."""

import pytest
from scenario.examples import INLINE_PROFILE, changed, mapping

from sim.errors import ScenarioError
from sim.scenario.load import load_scenario, parse_scenario

TALK = ["workload", 0]
CHAT = ["pool", "entitlements", 0]

BAD = [
    # misspelt or unknown
    (["sed"], 3, "sed", "unknown field", "did you mean seed?"),
    (["pool", "replica"], 3, "pool.replica", "unknown field", "did you mean replicas?"),
    (
        [*TALK, "client", "max_attemps"],
        3,
        "workload[0].client.max_attemps",
        "unknown field",
        "did you mean max_attempts?",
    ),
    (
        [*TALK, "arrivals", "kind"],
        "poison",
        "workload[0].arrivals.kind",
        "unknown kind 'poison'",
        "did you mean poisson?",
    ),
    ([*TALK, "client"], "rerty", "workload[0].client", "unknown kind 'rerty'", "did you mean retry?"),
    (["policies", 0], "token-pol", "policies[0]", "unknown kind 'token-pol'", "did you mean token-pool?"),
    (
        ["policies", 3, "requests_per_minute"],
        5,
        "policies[3].requests_per_minute",
        "unknown field",
        "did you mean requests_per_min?",
    ),
    (["pool", "router"], "round-robbin", "pool.router", "unknown kind 'round-robbin'", "did you mean round-robin?"),
    ([*CHAT, "service_class"], "guarenteed", "pool.entitlements[0].service_class", None, "did you mean guaranteed?"),
    # a tenant without entitlement
    ([*TALK, "entitlement"], "caht", "workload[0].entitlement", "unknown entitlement 'caht'", "did you mean chat?"),
    (
        ["policies", 3, "per_entitlement"],
        {"caht": {"requests_per_min": 1}},
        "policies[3].per_entitlement",
        "unknown entitlement 'caht'",
        "did you mean chat?",
    ),
    # wrong type or unit
    (
        ["horizon_s"],
        "90s",
        "horizon_s",
        "input should be a number, got '90s'",
        "the field is in seconds, give a plain number: 90",
    ),
    (
        [*CHAT, "ttft_slo_s"],
        "500 ms",
        "pool.entitlements[0].ttft_slo_s",
        None,
        "the field is in seconds, give a plain number: 0.5",
    ),
    (
        [*TALK, "arrivals", "rate_per_s"],
        "5/s",
        "workload[0].arrivals.rate_per_s",
        "input should be a number, got '5/s'",
        "the field is a rate per second, give a plain number",
    ),
    (
        [*TALK, "arrivals", "rate_per_s"],
        "5",
        "workload[0].arrivals.rate_per_s",
        "input should be a number, got '5'",
        "leave out the quotes: 5",
    ),
    (
        [*TALK, "prompt_tokens"],
        "64 tokens",
        "workload[0].prompt_tokens",
        "input should be a number or a mapping, got '64 tokens'",
        "the field is in tokens, give a plain number",
    ),
    (["seed"], 1.5, "seed", "input should be a whole number, got 1.5", "give a whole number, e.g. 7"),
    (["seed"], True, "seed", "input should be a whole number, got true", "give a whole number, e.g. 7"),
    (
        ["horizon_s"],
        None,
        "horizon_s",
        "missing, although workload[1] (batch) never ends",
        "give simulated seconds, e.g. 600, or that workload requests or until_s",
    ),
    (
        ["record_decisions"],
        "yes",
        "record_decisions",
        "input should be true or false, got 'yes'",
        "give true to record every verdict",
    ),
    (["title"], 5, "title", "input should be text, got 5", "put it in quotes: '5'"),
    (["pool"], 5, "pool", "input should be a mapping, got 5", "give the pool: its profile, replicas and entitlements"),
    (
        ["policies"],
        "none",
        "policies",
        "input should be a list, got 'none'",
        "give policies to compare, e.g. [token-pool, none]",
    ),
    (["workload"], [], "workload", "has 0 elements, at least 1 needed", "give at least one workload"),
    # impossible numbers
    (
        [*TALK, "arrivals", "rate_per_s"],
        -1,
        "workload[0].arrivals.rate_per_s",
        "input should be greater than or equal to 0.000000001, got -1",
        None,
    ),
    (["horizon_s"], -5, "horizon_s", "input should be greater than 0, got -5", "give simulated seconds, e.g. 600"),
    (
        ["horizon_s"],
        float("inf"),
        "horizon_s",
        "input should be a finite number, got inf",
        "give simulated seconds, e.g. 600",
    ),
    (
        ["horizon_s"],
        float("nan"),
        "horizon_s",
        "input should be a finite number, got nan",
        "give simulated seconds, e.g. 600",
    ),
    (
        [*TALK, "prompt_tokens"],
        -4,
        "workload[0].prompt_tokens",
        "input should be greater than or equal to 1, got -4",
        None,
    ),
    (["seed"], 2**70, "seed", "number too large", "give a number below 2**63"),
    (["version"], 2, "version", "input should be 1, got 2", "give 1"),
    (["warmup_s"], 600, "warmup_s", None, "give less than 600"),
    (["timeline_interval_s"], 1e-4, "timeline_interval_s", None, "give at least 0.0006, or null"),
    # what does not fit together
    (
        ["pool", "entitlements", 1, "baseline", "slots"],
        43,
        "pool.entitlements",
        "the baselines of chat, batch sum to 49 slots at 10 s, the pool has 48",
        None,
    ),
    (
        [*CHAT, "baseline", "tokens_per_s"],
        1000,
        "pool.entitlements",
        "the baselines of chat sum to 1000 tokens_per_s at 10 s, the pool has 720",
        "lower them or set replicas to 5",
    ),
    (
        [*CHAT, "limit", "slots"],
        5,
        "pool.entitlements[0].limit.slots",
        "5 is below the baseline of 6",
        "give at least 6",
    ),
    (
        [*CHAT, "limit"],
        {"kv_gib": 1, "kv_bytes": 1},
        "pool.entitlements[0].limit.kv_gib",
        "given beside kv_bytes",
        "keep one of the two",
    ),
    ([*CHAT, "until_s"], 10, "pool.entitlements[0].until_s", "10 is not after from_s (10)", "give more than 10"),
    ([*CHAT, "name"], "batch", "pool.entitlements", "2 are called 'batch'", "give each a name"),
    (
        ["pool", "entitlements", 2, "baseline"],
        {"slots": 1},
        "pool.entitlements[2].baseline",
        None,
        "give a limit instead, or another service_class",
    ),
    (["policies", 1, "name"], "none", "policies", "2 are called 'none'", "give each a name"),
    (["workload", 1, "name"], "talk", "workload", "2 are called 'talk'", "give each a name"),
    (
        ["workload", 1, "max_output_tokens"],
        5,
        "workload[1].max_output_tokens",
        "given although ask_max_tokens is false",
        "leave one of them out",
    ),
    (
        ["pool", "profile", "max_num_batched_tokens"],
        8,
        "pool.profile.max_num_batched_tokens",
        "8 is below max_num_seqs (16), which vLLM refuses",
        "give at least 16",
    ),
    (
        ["pool", "profile", "step_time", "base_s"],
        0,
        "pool.profile.step_time",
        None,
        "give one of them, e.g. base_s: 0.006",
    ),
    (["pool", "profile"], "no-such.yaml", None, "no such file", None),
    (
        ["events", 0, "at_s"],
        601,
        "events[0].at_s",
        "601 is after the horizon of 600 s",
        "give at most 600, or a longer horizon_s",
    ),
    (
        ["events", 0, "capacity", "slots"],
        49,
        "events[0].capacity.slots",
        "49 is more than the 48 provisioned",
        "give at most 48, the pool's total",
    ),
    (
        ["events", 2, "fail"],
        3,
        "events[2].fail",
        "unknown replica 3, the pool has 3",
        "they are numbered from 0, the last is 2",
    ),
    (["events", 2], {"at_s": 5}, "events[2]", "nothing happens", "give one of capacity, fail, restore and slow"),
    (
        ["events", 2, "restore"],
        1,
        "events[2]",
        "fail and restore in one event",
        "give one of capacity, fail, restore and slow",
    ),
    # what varies
    (["vary"], {"pol.replicas": [1]}, "pol", None, "did you mean pool?"),
    (["vary"], {"workload.tlak.priority": [1]}, "workload.tlak", None, "did you mean talk?"),
    (
        ["vary"],
        {"pool.replica": [1]},
        "pool.replica",
        "unknown field (where vary sets pool.replica=1)",
        "did you mean replicas?",
    ),
    (
        ["vary"],
        {"seed": [1, -1]},
        "seed",
        "input should be greater than or equal to 0, got -1 (where vary sets seed=-1)",
        None,
    ),
    (["vary"], {"seed": []}, "vary.seed", "no values", "give at least one, or leave the path out"),
    (["vary"], {"seed": [1, 1]}, "vary.seed", "the same value twice", "keep one of the two"),
    (["vary"], {"version": [1]}, "version", "cannot be set (where vary sets version=1)", "edit the file instead"),
    (
        ["vary"],
        {"seed": list(range(101)), "pool.scrape_interval_s": list(range(1, 101))},
        "vary",
        "more than 10000 combinations",
        "vary less in one scenario",
    ),
]


def refusal(tree, file="x.yaml"):
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(tree, file)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    return caught.value.args


@pytest.mark.parametrize(("path", "value", "field", "problem", "fix"), BAD)
def test_bad_input_is_refused_with_place_problem_and_fix(path, value, field, problem, fix):
    found = refusal(changed(path, value))
    assert found[1] == (field if field is not None else found[1])
    assert found[2] == (problem if problem is not None else found[2])
    assert found[3] == (fix if fix is not None else found[3])
    assert found[2]
    assert found[3]


def test_a_misspelt_key_comes_before_the_missing_one_it_causes():
    tree = mapping()
    arrivals = tree["workload"][0]["arrivals"]
    arrivals["rate_per_sec"] = arrivals.pop("rate_per_s")
    assert refusal(tree) == ("x.yaml", "workload[0].arrivals.rate_per_sec", "unknown field", "did you mean rate_per_s?")


def test_the_line_is_the_one_of_the_style_guide():
    tree = changed(["horizon_s"], -5)
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(tree, "scenarios/noisy.yaml")
    assert str(caught.value) == (
        "scenarios/noisy.yaml: horizon_s: input should be greater than 0, got -5; give simulated seconds, e.g. 600"
    )


def test_other_problems_are_counted_and_named():
    tree = changed(["horizon_s"], -5)
    tree["seed"] = -1
    tree["pool"]["replicas"] = 0
    assert refusal(tree)[1:] == (
        "seed",
        "input should be greater than or equal to 0, got -1",
        "give a whole number, e.g. 7 (and 2 more: horizon_s, pool.replicas)",
    )


def test_a_list_whose_only_element_is_refused_is_not_short_too():
    tree = changed(["policies"], [{"kind": "ptu"}])
    assert "more" not in refusal(tree)[3]
    tree["policies"] = []
    assert refusal(tree)[1:3] == ("policies", "has 0 elements, at least 1 needed")


@pytest.mark.parametrize("field", ["version", "pool", "workload", "policies"])
def test_a_missing_field_is_named(field):
    tree = mapping()
    del tree[field]
    assert refusal(tree)[1:3] == (field, "missing")


def test_lengths_are_needed_unless_a_trace_has_them():
    tree = mapping()
    del tree["workload"][0]["prompt_tokens"]
    assert refusal(tree)[1:3] == ("workload[0].prompt_tokens", "missing")


def test_two_policies_of_a_kind_need_names():
    assert refusal(changed(["policies"], ["none", "none"]))[1:] == (
        "policies",
        "2 are called 'none'",
        "give each a name",
    )


def test_an_unknown_profile_names_the_nearest():
    found = refusal(changed(["pool", "profile"], "dgx-spark-qwen3-8b-nvpf4"))
    assert found[1:] == (
        "pool.profile",
        "unknown profile 'dgx-spark-qwen3-8b-nvpf4'",
        "did you mean dgx-spark-qwen3-8b-nvfp4?",
    )


def test_a_key_that_holds_a_line_break_stays_on_one_line():
    assert refusal(changed(["a\nb"], 1), "x\ny.yaml")[1] == r"'a\nb'"


def test_python_values_that_no_file_could_hold_are_refused():
    cycle = mapping(INLINE_PROFILE)
    cycle["pool"]["self"] = cycle
    assert "nested deeper" in refusal(cycle)[2]
    assert refusal(changed(["seed"], {1: 2}))[1:3] == ("seed", "1 as a key")
    assert refusal(changed(["seed"], {1, 2}))[1:3] == ("seed", "a set")
    assert refusal([])[2] == "not a mapping"


def load(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.args[0] == str(path)
    return caught.value.args[1:]


@pytest.mark.parametrize(
    ("content", "field", "problem"),
    [
        (b"", "", "empty"),
        (b"# only a comment\n", "", "empty"),
        (b"- 1\n- 2\n", "", "holds a list, not a mapping"),
        (b"just text", "", "holds 'just text', not a mapping"),
        (b"\x89PNG\r\n\x1a\n\x00", "", "not UTF-8 text (byte 0)"),
        (b"version: \x00", "character 10", "not valid YAML: not a printable character"),
        (b"version: 1\nseed: 1\nseed: 2\n", "line 3, column 1", "'seed' appears twice in one mapping"),
        (b"version: 1\npool: &a {x: *a}\n", "line 2, column 14", "*a refers to itself"),
        (b"version: *b\n", "line 1, column 10", "*b refers to nothing"),
        (b"1: 2\n", "line 1, column 1", "1 as a key"),
        (b"? [a]\n: 2\n", "line 1, column 3", "a list or mapping as a key"),
        (b"version: !!python/none x\n", "line 1, column 10", "the tag 'tag:yaml.org,2002:python/none'"),
        (b"a: 1\n---\nb: 2\n", "line 2, column 1", "a second document"),
        (b"a: " + b"[" * 60 + b"]" * 60, "line 1, column 53", "nested deeper than 50 levels"),
        (b"seed: " + b"9" * 5000, "line 1, column 7", "number too large"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused_with_its_place(tmp_path, content, field, problem):
    assert load(tmp_path, content)[:2] == (field, problem)


def test_a_syntax_error_has_line_and_column(tmp_path):
    field, problem, _ = load(tmp_path, b"version: 1\npool: {a: 1\nseed: 2\n")
    assert field.startswith("line 3, column ")
    assert problem.startswith("not valid YAML: while parsing a flow mapping")


def test_anchors_cannot_be_used_to_exhaust_the_memory(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    assert load(tmp_path, "\n".join(lines).encode())[1] == "more than 1000000 values"


def test_numbers_are_read_as_people_write_them(tmp_path):
    numbers = "version: 1\nhorizon_s: 1e5\nseed: +010\ntimeline_interval_s: 2.5E+1\n"
    path = tmp_path / "x.yaml"
    path.write_text(numbers + INLINE_PROFILE.split("\n", 3)[3])
    scenario = load_scenario(path)
    assert (scenario.horizon_s, scenario.seed, scenario.timeline_interval_s) == (100000.0, 10, 25.0)


def test_a_name_that_nothing_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError, match=r"^no-such: no such file or shipped scenario; "):
        load_scenario("no-such")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ScenarioError, match=r"^folder: is a folder; "):
        load_scenario("folder")
    with pytest.raises(ScenarioError, match=r"no such file"):
        load_scenario("a\0b.yaml")
    with pytest.raises(ScenarioError):
        load_scenario("")
