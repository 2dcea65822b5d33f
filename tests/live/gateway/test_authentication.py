from __future__ import annotations

import hashlib
import logging

import pytest
from live.gate import ENTITLEMENTS, gateway, secret
from live.stand_in import running

from policies.api import EntitlementSpec, ServiceClass
from sim.live.gateway.authentication import Identity, hashed, new_key
from sim.live.gateway.error_responses import ApiError
from sim.live.gateway.settings import Key

HEADER = "x-tokenpools-class"
SPECS = [
    EntitlementSpec(name=str(one["name"]), tenant=str(one["tenant"]), service_class=ServiceClass(one["service_class"]))
    for one in ENTITLEMENTS
]
KEYS = [Key(name=f"key-{spec.name}", entitlement=spec.name, digest=hashed(secret(spec.name))) for spec in SPECS]


def identify(authorization: bytes, service_class: bytes | None = None) -> str:
    headers = {b"authorization": authorization}
    if service_class is not None:
        headers[HEADER.encode()] = service_class
    return Identity(KEYS, SPECS, HEADER).identify(headers)[1].name


def test_a_key_is_long_and_known_by_its_hash_alone() -> None:
    key = new_key()
    assert len(key) > 40
    assert key != new_key()
    assert hashed(key) == hashlib.sha256(key.encode()).digest()
    assert hashed(key).hex() not in repr(Key(name="k", entitlement="chat", digest=hashed(key)))


def test_a_key_opens_its_entitlement() -> None:
    for spec in SPECS:
        assert identify(f"Bearer {secret(spec.name)}".encode()) == spec.name
        assert identify(f"bearer   {secret(spec.name)} ".encode()) == spec.name


@pytest.mark.parametrize("said", [b"", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer wrong", b"Bearer \xff\x00",
                                  f"Bearer {secret('chat')}x".encode(), secret("chat").encode(),
                                  b"Bearer " + b"x" * 100_000])
def test_whatever_else_opens_nothing(said: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        identify(said)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_a_request_may_lower_its_class_within_its_tenant_and_never_raise_it() -> None:
    chat, spot, batch = (f"Bearer {secret(name)}".encode() for name in ("chat", "chat-spot", "batch"))
    assert identify(chat, b"Spot ") == "chat-spot"
    assert identify(chat, b"guaranteed") == "chat"
    for key, wanted, status in [
        (spot, b"guaranteed", 403), (spot, b"dedicated", 403), (chat, b"dedicated", 403), (batch, b"preemptible", 403),
        (chat, b"elastic", 403), (chat, b"gold", 400), (chat, b"\xff", 400),
    ]:  # fmt: skip
        with pytest.raises(ApiError) as caught:
            identify(key, wanted)
        assert caught.value.status == status


def test_over_http_and_no_key_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with running(api_key="upstream-secret") as stand_in, gateway(stand_in) as gate:
        none, wrong = gate.ask(key=None), gate.ask(key=None, headers={"authorization": "Bearer sk-wrong"})
        assert (none.status, wrong.status) == (401, 401)
        assert none.headers["www-authenticate"] == "Bearer"
        assert none.headers["x-should-retry"] == "false"
        assert gate.ask(key="batch", headers={HEADER: "dedicated"}).status == 403
        assert gate.ask(headers={HEADER: "spot"}).status == 401  # the upstream wants a key that the gateway has not
        gate.balanced()
        assert gate.logs[-1].entitlement == "chat-spot"
        assert [log.http_status for log in gate.logs] == [401, 401, 403, 401]
        assert secret("chat") not in "".join(map(repr, stand_in.seen))
        told = caplog.text + "".join(map(repr, gate.logs)) + repr(gate.service.settings)
    for name in ("chat", "batch"):
        assert secret(name) not in told
        assert hashed(secret(name)).hex() not in told
    assert "sk-wrong" not in told


def test_the_upstreams_own_key_is_used_and_told_to_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_UPSTREAM_KEY", "upstream-secret")
    with running(api_key="upstream-secret") as stand_in:
        upstreams = [{"name": "one", "base_url": stand_in.base_url, "api_key_env": "TEST_UPSTREAM_KEY"}]
        with gateway(stand_in, upstreams=upstreams) as gate:
            answer = gate.ask()
            assert answer.status == 200
            assert "upstream-secret" not in caplog.text + repr(answer) + repr(gate.service.settings)
