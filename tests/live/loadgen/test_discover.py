"""What is found out about a server before a run, where it answers otherwise than vLLM does."""

from __future__ import annotations

import pytest
from live.gate import gateway, secret
from live.stand_in import running

from sim.errors import InputError
from sim.live.loadgen.discover import discover

LATER = ({"name": "chat", "tenant": "acme", "service_class": "spot", "from_s": 3600.0},)


def test_who_is_not_in_force_yet_learns_the_model_from_the_gateways_state() -> None:
    with running() as one, gateway(one, entitlements=LATER, admin={"port": 0}) as gate:
        pages = f"http://127.0.0.1:{gate.observability.port}"
        found = discover(gate.base_url, key=secret("chat"), admin_url=pages)
        assert (found.model, found.state) == ("tiny", f"{pages}/admin/state")
        assert found.policy == "none"
        with pytest.raises(InputError, match="answers 403 to the key that was given; name the model with --model"):
            discover(gate.base_url, key=secret("chat"))
        with pytest.raises(InputError, match="answers 401; give keys"):
            discover(gate.base_url, admin_url=pages)
