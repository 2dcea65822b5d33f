"""The admin page in a real browser, with a hundred tenants whose names somebody else chose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from analysis.browser import CHROMIUM, Tab, browser
from live.gate import Gate, gateway
from live.stand_in import Behaviour, running

from policies.shadow import Opinion
from sim.live.observability.shadows import ShadowTally

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

LONG = "a-name-that-somebody-generated-from-a-department-and-a-cost-centre-and-then-some-more-words"
NAMES = (LONG, "<script>alert(1)</script> & <b>", "客服-团队-机器学习", "عربي-فريق", "x" * 90)
MEMBERS = [
    {"name": name, "tenant": name, "service_class": ("elastic", "spot", "preemptible")[number % 3],
     "parent": "research" if number % 2 else LONG, "baseline": {"slots": 0.05 if number % 3 == 0 else 0}}
    for number, name in enumerate([*NAMES, "chat", *(f"team-{number:03d}" for number in range(94))])
]  # fmt: skip
for one in MEMBERS:
    if one["service_class"] != "elastic":
        del one["baseline"]
GROUPS = [
    {"name": LONG, "limit": {"slots": 12}, "budgets": [{"per": "month", "unit": "money", "limit": 0.5}]},
    {"name": "research", "parent": LONG, "budgets": [{"per": "day", "limit": 1e9}]},
]
PRICES = [{"prompt_per_million": 20_000, "output_per_million": 10_000}]
TABLES = ("entitlements", "replicas", "budgets", "groups", "keys", "use", "shadows", "refusals")


async def accounts() -> Mapping[str, Any]:
    """Return keys and use as a store has them; that it is asked is tested in tests/live/accounts."""
    used = {"requests": 3, "prompt_tokens": 10**9, "cached_tokens": 5, "output_tokens": 7, "money": 0.0123}
    key = {"name": LONG, "entitlement": LONG, "created_s": 1.79e9, "expires_s": None, "disabled": False}
    return {
        "keys": [key, {**key, "name": "old", "expires_s": 1.7e9}, {**key, "name": "off", "disabled": True}],
        "use": [{"day": "2026-11-29", "key": LONG, "entitlement": LONG, "model": LONG, **used}],
    }


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    with running(behaviour=Behaviour(ttft_s=0.01)) as stand_in, gateway(
        stand_in, entitlements=MEMBERS, policy={"kind": "token-pool", "tick_s": 0.1}, admin={"port": 0},
        pool={"groups": GROUPS, "prices": PRICES},
    ) as one:
        for _ in range(2):
            assert one.ask(key="chat", max_tokens=5).status == 200
        assert one.ask(key="chat", max_tokens=10**6).status == 400
        tally = ShadowTally()
        tally(Opinion("tight", 0.0, "r", 1, LONG, LONG, acting="forward", verdict="refuse", reason="tokens"))
        one.observability.state.shadows = tally.rows
        one.observability.state.accounts = accounts
        yield one


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_table_can_be_read(gate: Gate, tab: Tab, width: int, scheme: str) -> None:
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    url = f"http://127.0.0.1:{gate.observability.port}/"
    tab.open(url, width=width, until="document.querySelectorAll('#entitlements tbody tr').length === 100")
    assert not tab.said
    assert tab.js("document.documentElement.scrollWidth <= innerWidth")
    for table in TABLES:
        assert tab.js(f"document.querySelectorAll('#{table} tbody tr').length") >= 1
        assert tab.js(f"document.querySelector('#{table}').getBoundingClientRect().width") > 0, f"{table} is hidden"
        names = tab.js(f"document.querySelector('#{table} tbody th').getBoundingClientRect().width")
        # The first column stays where the others move: with half of a narrow screen, the others are never seen.
        assert names <= 0.55 * width, f"{table}: names are {names} px wide"
        region = f"document.querySelector('#{table}').parentElement"
        assert tab.js(f"{region}.clientHeight <= 0.72 * innerHeight"), f"{table} is a screen to scroll over"
        head = tab.js(f"(() => {{ const r = {region}; r.scrollTop = 400; const top = r.getBoundingClientRect().top;"
                      f"return r.querySelector('thead th').getBoundingClientRect().top - top; }})()")  # fmt: skip
        assert 0 <= head <= 2, f"{table}: headings are gone after {head} px"
    background = tab.js("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(20, 24, 28)")


def test_what_it_says_is_whole(gate: Gate, tab: Tab) -> None:
    url = f"http://127.0.0.1:{gate.observability.port}/"
    tab.open(url, width=1280, until="document.querySelectorAll('#entitlements tbody tr').length === 100")

    def text(table: str) -> str:
        found: str = tab.js(f"document.getElementById('{table}').innerText")
        return found

    assert NAMES[1] in text("entitlements")
    assert tab.js("document.querySelector('#entitlements script')") is None
    assert "0.05" in text("entitlements")  # a baseline of less than a slot is not 0
    assert "0.22 of 0.5" in text("budgets")  # nor is a sum of less than one
    assert [word in text("keys") for word in ("good", "expired", "disabled")] == [True] * 3
    assert "1,000,000,000" in text("use")
    assert "0.0123" in text("use")
    assert "of 12" in text("groups")
