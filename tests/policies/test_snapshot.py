from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from parity.tiny_world import Ask, TinyWorld, make_core

from policies import snapshot
from policies.api import (
    EntitlementSpec,
    PoolCapacity,
    Reason,
    RequestView,
    Resources,
    ServiceClass,
)
from policies.core import GatewayCore
from policies.meters import ContinuousBucket, SlidingWindow
from policies.no_control import NoControlPolicy
from policies.registry import ROUTERS, SCALERS
from policies.snapshot import SnapshotError, dump, load
from policies.token_pool.params import TokenPool
from policies.token_pool.policy import TokenPoolPolicy
from policies.token_pool.priority import weight

SPECS = [
    EntitlementSpec(name="a", tenant="a", service_class=ServiceClass.GUARANTEED, baseline=Resources(slots=4)),
    EntitlementSpec(name="b", tenant="b", service_class=ServiceClass.ELASTIC, baseline=Resources(100.0, slots=4)),
]


def there_and_back(value: object) -> Any:
    return load(json.loads(json.dumps(dump(value), allow_nan=False)), chance=random.Random)


def test_objects_that_are_shared_stay_shared_and_types_stay_what_they_are() -> None:
    bucket = ContinuousBucket(rate_per_s=0.1, depth=float("inf"))
    bucket.reserve(0.3, 1.1)
    shared: dict[str, Any] = {"bucket": bucket}
    whole = [
        shared, bucket, MappingProxyType(shared), bucket.settle, weight, (1, 1.0, True, None, -0.0), Reason.TOKENS,
        deque([bucket, 2], maxlen=3), {3, 1}, frozenset({"x"}), OrderedDict(b=1, a=2), Counter(x=2), RequestView,
        RequestView("r", "e", "t", 1, None), defaultdict(list, {2: [bucket]}), ServiceClass.SPOT, [float("nan")],
    ]
    whole.append(whole)
    back = there_and_back(whole)
    assert repr(back[5]) == "(1, 1.0, True, None, -0.0)"
    assert back[0]["bucket"] is back[1] is back[3].__self__ is back[7][0] is back[14][2][0]
    assert back[3] == back[1].settle
    assert (back[4], back[6], back[12]) == (weight, Reason.TOKENS, RequestView)
    assert (back[7].maxlen, back[8], back[9], list(back[10])) == (3, {3, 1}, frozenset({"x"}), ["b", "a"])
    assert type(back[11]) is Counter
    assert back[13] == RequestView("r", "e", "t", 1, None)
    assert back[14][9] == []
    back[0]["new"] = 1
    assert back[2]["new"] == 1
    assert back[17] is back
    back[3](0.3, 0.2, 1.2)
    bucket.settle(0.3, 0.2, 1.2)
    assert repr(dump(back[1])) == repr(dump(bucket))


def test_a_generator_and_its_cached_method_go_on_together() -> None:
    rng = random.Random(3)
    rng.gauss(0, 1)
    back, draw = there_and_back([rng, rng.random])
    assert [back.random(), draw(), back.gauss(0, 1)] == [rng.random(), rng.random(), rng.gauss(0, 1)]


def test_a_whole_pool_with_any_router_and_autoscaler_goes_on_identically() -> None:
    for router in ROUTERS:
        for name, entry in SCALERS.items():
            cores = [_scaled(router, entry) for _ in range(2)]
            world = TinyWorld(cores[0], [Ask(0.05 * k, "ab"[k % 2], 8 + k % 40) for k in range(200)])
            said = world.run(30.0)
            cores[1].start(0.0)
            for number, (now_s, event, steps) in enumerate(said):
                if number == len(said) // 2:
                    text = json.dumps(snapshot.take(cores[1]), allow_nan=False)
                    cores[1] = snapshot.restore(json.loads(text), chance=random.Random)
                assert tuple(cores[1].handle(event, now_s)) == steps, name
            assert snapshot.take(cores[1]) == snapshot.take(cores[0])


def _scaled(router: str, entry: Any) -> GatewayCore:
    policy = TokenPoolPolicy(
        TokenPool(tick_s=1.0, max_request_tokens=100), SPECS, kv_bytes_per_token=None, chance=random.Random(1)
    )
    scaler = entry.build(entry.params(), policy=policy, entitlements=SPECS, per_replica=PoolCapacity(1, 8, 100.0))
    return GatewayCore(
        entitlements=SPECS, capacity=PoolCapacity(2, 16, 200.0), replica_ids=[0, 1], policy=policy,
        router=ROUTERS[router].build(ROUTERS[router].params()), scaler=scaler,
    )


def test_what_cannot_be_written_down_is_named_with_its_place() -> None:
    class Local:
        pass

    for value, said in [
        (lambda: 1, "<lambda>; keep a bound method"), (Local(), "Local; a snapshot holds classes"),
        (iter([1]), "list_iterator"), (object(), "builtins.object"), (Path("x"), "PosixPath"), (b"x", "bytes"),
        (defaultdict(lambda: 1), "defaultdict of"), (os.system, "found"),
    ]:  # fmt: skip
        with pytest.raises(SnapshotError, match=said):
            dump(value)
    core = make_core(TokenPool(), SPECS)
    core._policy._accounts["a"] = {"deep": [1, lambda: 2]}  # type: ignore[attr-defined]
    with pytest.raises(SnapshotError) as caught:
        snapshot.take(core)
    assert "_accounts.['a'].['deep'].[1]: found the function" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"root": ["function", "os:system"]}, "'os:system'"),
        ({"root": ["function", "policies.snapshot:sys"]}, "policies.snapshot:sys"),
        ({"root": ["class", "policies.nowhere:Thing"]}, "policies.nowhere"),
        ({"root": ["class", "policies.core:Any"]}, "policies.core:Any"),
        ({"root": [7]}, "object 7"),
        ({"root": ["exec", "1"]}, "means nothing"),
        ({"root": {"a": 1}}, "found dict"),
        ({"layouts": [["random:Random", []]], "root": ["object", 0]}, "random:Random"),
        ({"layouts": [["policies.messages:Tick", []]], "root": ["object", 0]}, "cannot be made empty"),
        ({"layouts": [["policies.no_control:NoControlPolicy", ["__class__"]]], "root": ["object", 0, 1]}, "__class__"),
        ({"objects": [["method", 5, "bit_length"]], "root": [0]}, "no method"),
        ({"objects": [["list"], ["builtin", [0], "__class__"]], "root": [1]}, "__class__"),
        ({"objects": [["chance", 3, [], None]], "root": [0]}, "say with what to make it"),
        ({"objects": [["deque"]], "root": [0]}, "damaged"),
        ({"root": ["enum", "policies.messages:Reason", "mood"]}, "mood"),
        ({"root": 5}, "found a int; expected a snapshot of a GatewayCore"),
    ],
)
def test_data_that_is_no_snapshot_is_refused_and_runs_nothing(change: dict[str, Any], said: str) -> None:
    whole = {"format": 1, "layouts": [], "objects": [], "root": None} | change
    with pytest.raises(SnapshotError) as caught:
        snapshot.restore(whole)
    assert said in str(caught.value)


def test_a_pool_of_many_requests_is_small_and_quick_to_write() -> None:
    core = GatewayCore(
        entitlements=SPECS, capacity=PoolCapacity(1, 1000), replica_ids=[0], policy=NoControlPolicy(),
        router=ROUTERS["round-robin"].build(None),
    )
    world = TinyWorld(core, [Ask(0.0, "a", 1000) for _ in range(1000)])
    world.run(1.0)
    assert len(core.pool.in_flight) == 1000
    assert len(json.dumps(snapshot.take(core), separators=(",", ":"))) < 150_000


def test_decisions_do_not_hang_on_the_order_of_hashes() -> None:
    """Gateways that share state decide alike in processes of their own; sets of names have another order in each."""
    script = Path(__file__).with_name("decisions_digest.py")
    digests = set()
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, str(script)], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True,
            timeout=120, check=True,
        )
        digests.add(ran.stdout)
    assert len(digests) == 1
    assert len(digests.pop().splitlines()) > 3


def test_a_window_keeps_its_charges() -> None:
    window = SlidingWindow(limit=10, window_s=60.0)
    charge = window.reserve(4, 1.0)
    back, charge_back = there_and_back([window, charge])
    back.settle(charge_back, 1, 2.0)
    window.settle(charge, 1, 2.0)
    assert back.available(3.0) == window.available(3.0) == 9
