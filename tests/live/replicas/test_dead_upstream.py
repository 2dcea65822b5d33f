"""An upstream that is not there is said once, and once more when it comes and goes."""

from __future__ import annotations

import asyncio
import logging

import pytest
from live.stand_in import StandIn

from policies.api import PoolCapacity
from sim.live.gateway.settings import Timeouts, UpstreamAddress
from sim.live.replicas.upstreams import Upstreams


def test_an_upstream_that_never_answered_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def look() -> None:
        upstreams = Upstreams(
            (UpstreamAddress(name="gone", base_url="http://127.0.0.1:9"),),
            timeouts=Timeouts(health_every_s=60.0, health_s=0.5), capacity_of=lambda n: PoolCapacity(n, n),
            emit=lambda _: None, now_s=lambda: 0.0, scrape_every_s=None,
        )  # fmt: skip
        await upstreams.open()
        replica = upstreams.replicas[0]
        for _ in range(5):
            await upstreams._look(replica)
        said = [record.getMessage() for record in caplog.records if "gone" in record.getMessage()]
        assert len(said) == 1
        assert "does not answer" in said[0]
        stand_in = StandIn()
        await stand_in.start()
        replica.address = UpstreamAddress(name="gone", base_url=stand_in.base_url)
        await upstreams._look(replica)
        assert replica.ready
        await stand_in.stop()
        for _ in range(5):
            await upstreams._look(replica)
        said = [record.getMessage() for record in caplog.records if "gone" in record.getMessage()]
        assert [one.split(";")[0] for one in said[1:]] == ["upstream gone is ready", "upstream gone is not healthy"]
        await upstreams.close()

    with caplog.at_level(logging.INFO, "tokenpools"):
        asyncio.run(look())
