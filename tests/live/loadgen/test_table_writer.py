from __future__ import annotations

import asyncio
import errno
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live.gate import gateway
from live.stand_in import running

from policies.api import EntitlementSpec, Reason, ServiceClass
from sim.errors import InputError
from sim.live.loadgen import table_writer as tables
from sim.live.loadgen.table_writer import Tables
from sim.live.observability.observer import NEVER_S, Ended, RequestLog
from sim.records.schema import request_schema

SPEC = EntitlementSpec(name="chat", tenant="acme", service_class=ServiceClass.GUARANTEED, ttft_slo_s=1.0)
ROW = RequestLog(
    request_id="req-1", client_request_id="", key_name="k", tenant="acme", entitlement="chat",
    service_class=ServiceClass.GUARANTEED, endpoint="/v1/completions", model="tiny", stream=True, attempt=1,
    prompt_tokens=5, counted_prompt_tokens=3, max_output_tokens=None, output_tokens=4, cached_tokens=0, arrival_s=1.0,
    forwarded_s=1.5, first_token_s=2.0, finish_s=3.0, replica=0, tries=1, outcome=Ended.FINISHED, reason=None,
    needed=0.0, available=0.0, http_status=200, retry_after_s=None, error="",
)  # fmt: skip
REFUSED = replace(
    ROW, request_id="req-2", outcome=Ended.REFUSED, reason=Reason.TOKENS, http_status=429, retry_after_s=3.0,
    forwarded_s=NEVER_S, first_token_s=NEVER_S, replica=None,
)  # fmt: skip


def read(folder: Path) -> pa.Table:
    assert not list(folder.glob(".*"))
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])


def test_rows_have_the_columns_of_a_simulated_run(tmp_path: Path) -> None:
    async def run() -> None:
        async with Tables(tmp_path / "records", [SPEC], "token-pool") as observer:
            for row in (ROW, REFUSED, replace(ROW, entitlement="", tenant="", service_class=None)):
                observer.ended(row)

    asyncio.run(run())
    table = read(tmp_path / "records")
    assert table.schema.names == request_schema().names
    first, second = table.to_pylist()
    assert (first["outcome"], first["prompt_tokens"], first["max_output_tokens"]) == ("finished", 3, None)
    assert (first["tenant"], first["policy"], first["slo_met"]) == ("acme", "token-pool", True)
    assert (second["outcome"], second["reason"], second["http_status"]) == ("refused", "tokens", 429)
    assert (second["retry_after_s"], second["replica"], second["forwarded_s"]) == (3.0, None, None)


def test_a_full_disk_keeps_rows_for_later_and_half_a_file_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    full = True

    def write(table: pa.Table, path: Path) -> None:
        path.write_bytes(b"half")
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        pq.write_table(table, path)

    async def run() -> None:
        nonlocal full
        async with Tables(tmp_path, [SPEC], "none", write=write) as observer:
            observer.ended(ROW)
            for _ in range(3):
                assert not await observer.flush()
                assert not list(tmp_path.iterdir())
            observer.ended(REFUSED)
            full = False

    asyncio.run(run())
    assert read(tmp_path).num_rows == 2
    assert caplog.text.count("No space left") == 1


def test_a_file_that_is_being_written_at_the_end_holds_its_rows_once(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def write(table: pa.Table, path: Path) -> None:
        started.set()
        assert go_on.wait(60)
        pq.write_table(table, path)

    async def run() -> None:
        observer = Tables(tmp_path, [SPEC], "none", every_s=0.001, write=write)
        observer.ended(ROW)
        await observer.__aenter__()
        assert await asyncio.to_thread(started.wait, 60)
        ending = asyncio.ensure_future(observer.__aexit__())
        await asyncio.sleep(0)  # the end has begun, the file is not there
        go_on.set()
        await ending

    asyncio.run(run())
    assert read(tmp_path).num_rows == 1


def test_what_cannot_be_written_for_long_is_thrown_away_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_ROWS", 10)
    observer = Tables(tmp_path, [SPEC], "none")
    for _ in range(1000):
        observer.ended(ROW)
    assert len(observer._rows) <= 10 * tables.KEPT_FILES
    assert observer.lost + len(observer._rows) == 1000


def test_serving_goes_on_beside_a_disk_that_is_full(tmp_path: Path) -> None:
    def refuse(table: pa.Table, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with running() as stand_in, gateway(stand_in) as gate:
        observers: list[Any] = []

        async def begin() -> None:
            observers.append(await Tables(tmp_path, gate.service.settings.entitlements, "none", every_s=0.01,
                                          write=refuse).__aenter__())
            gate.service.in_flight.observers += observers

        asyncio.run_coroutine_threadsafe(begin(), gate.loop).result(5)
        assert [gate.ask().status for _ in range(5)] == [200] * 5
        asyncio.run_coroutine_threadsafe(observers[0].__aexit__(), gate.loop).result(5)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        Tables(tmp_path / "file" / "records", [SPEC], "none")
