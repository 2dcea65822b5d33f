"""What is where in the files of each publisher. A format of rows is one entry here."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from workloads.formats.times import Unit

Container = Literal["csv", "jsonl", "parquet", "document", "log"]
ROLES = ("time", "prompt", "output", "limit", "tenant", "service", "session", "turn", "blocks", "request_id", "parent")
LABELS = ("tenant", "service", "session")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A table of requests: which column says what, None where there is none.

    Attributes
    ----------
    container : csv, jsonl, parquet, or document: one JSON text, for which `workloads.formats.documents` has a reader;
        or log, for `workloads.formats.logs`.
    columns : the columns as published, in order, all of them: what a CSV file is recognised by, and written with.
        Empty: whatever the file has, as long as those that are named here are among them.
    unit : of ``time``; datetime is text such as 2023-11-16 18:17:03.9799600.
    parent : where the row that this one continues is named, for layouts in which ``request_id`` names conversations.
    block_tokens : tokens of one of the ``blocks``.
    bin_s : the publisher rounded times down to multiples of this; 0: not.
    failed_have_no_output : rows without output are requests that failed, and are left out.
    turns_from_0 : the first request of a conversation is number 0, not 1.
    fill : what is written in columns that mean nothing here.
    unanswered_prompt_tokens, unanswered_output_tokens : of a log, the lengths of requests of which it tells none; 0: as
        those of others, drawn.
    """

    name: str
    about: str
    container: Container
    time: str
    unit: Unit
    prompt: str
    output: str
    limit: str | None = None
    tenant: str | None = None
    service: str | None = None
    session: str | None = None
    turn: str | None = None
    blocks: str | None = None
    request_id: str | None = None
    parent: str | None = None
    columns: tuple[str, ...] = ()
    block_tokens: int = 0
    bin_s: float = 0.0
    failed_have_no_output: bool = False
    turns_from_0: bool = False
    fill: tuple[tuple[str, str], ...] = ()
    unanswered_prompt_tokens: int = 0
    unanswered_output_tokens: int = 0

    def role(self, name: str) -> str | None:
        """Return the column that plays a role of ``ROLES``."""
        column: str | None = getattr(self, name)
        return column

    @property
    def has(self) -> frozenset[str]:
        """The roles that the format has a column for."""
        return frozenset(name for name in ROLES if self.role(name) is not None)


_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BURST = ("Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")
_TRACE_V2 = (
    "request_id", "client_id", "tenant_id", "slo_class", "session_id", "round_index", "prefix_group", "streaming",
    "input_tokens", "output_tokens", "text_tokens", "image_tokens", "audio_tokens", "video_tokens", "reason_ratio",
    "arrival_time_us", "send_time_us", "first_chunk_time_us", "last_chunk_time_us", "num_chunks", "status",
    "error_message",
)  # fmt: skip

_PLAIN: tuple[tuple[Container, str], ...] = (
    ("csv", "CSV (no prefix blocks)"),
    ("jsonl", "JSONL"),
    ("parquet", "Parquet"),
)

_ALL = (
    Layout(
        name="azure-llm",
        about="Azure LLM inference traces of 2023 and 2024: one service a file, 100 ns clock, 2024 with a time zone",
        container="csv",
        columns=_AZURE,
        time="TIMESTAMP",
        unit="datetime",
        prompt="ContextTokens",
        output="GeneratedTokens",
    ),
    Layout(
        name="azure-multimodal",
        about="Azure multimodal inference trace of 2025: as azure-llm, with a number of images (tokens in context)",
        container="csv",
        columns=("TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens"),
        time="TIMESTAMP",
        unit="datetime",
        prompt="ContextTokens",
        output="GeneratedTokens",
        fill=(("NumImages", "0"),),
    ),
    Layout(
        name="burstgpt",
        about="BurstGPT: Azure OpenAI calls of a campus; whole seconds (spread), failures have no response tokens",
        container="csv",
        columns=("Timestamp", *_BURST),
        time="Timestamp",
        unit="s",
        prompt="Request tokens",
        output="Response tokens",
        service="Model",
        bin_s=1.0,
        failed_have_no_output=True,
        fill=(("Log Type", "API log"),),
    ),
    Layout(
        name="burstgpt-sessions",
        about="BurstGPT with session ids; otherwise as burstgpt",
        container="csv",
        columns=("Timestamp", "Session ID", "Elapsed time", *_BURST),
        time="Timestamp",
        unit="s",
        prompt="Request tokens",
        output="Response tokens",
        service="Model",
        session="Session ID",
        bin_s=1.0,
        failed_have_no_output=True,
        fill=(("Log Type", "API log"), ("Elapsed time", "0")),
    ),
    Layout(
        name="mooncake",
        about="Mooncake (FAST 2025): prefix blocks of 512 tokens; times fall in bins of 3 s (spread)",
        container="jsonl",
        columns=("timestamp", "input_length", "output_length", "hash_ids"),
        time="timestamp",
        unit="ms",
        prompt="input_length",
        output="output_length",
        blocks="hash_ids",
        block_tokens=512,
        bin_s=3.0,
    ),
    Layout(
        name="qwen-bailian",
        about="Qwen-Bailian usage traces: conversations with turns, prefix blocks of 16 tokens",
        container="jsonl",
        columns=(
            "chat_id",
            "parent_chat_id",
            "timestamp",
            "input_length",
            "output_length",
            "type",
            "turn",
            "hash_ids",
        ),
        time="timestamp",
        unit="s",
        prompt="input_length",
        output="output_length",
        service="type",
        turn="turn",
        blocks="hash_ids",
        request_id="chat_id",
        parent="parent_chat_id",
        block_tokens=16,
    ),
    Layout(
        name="arena-vtc",
        about="LMSYS Arena as in the VTC artifact, converted from its pickle: tenant = model asked",
        container="csv",
        columns=("req_id", "tenant", "prompt_len", "output_len", "req_time"),
        time="req_time",
        unit="s",
        prompt="prompt_len",
        output="output_len",
        tenant="tenant",
        request_id="req_id",
    ),
    Layout(
        name="trace-v2",
        about="inference-sim TraceV2, the CSV beside its YAML header; whole microseconds",
        container="csv",
        columns=_TRACE_V2,
        time="arrival_time_us",
        unit="us",
        prompt="input_tokens",
        output="output_tokens",
        tenant="tenant_id",
        service="client_id",
        session="session_id",
        turn="round_index",
        turns_from_0=True,
        request_id="request_id",
        fill=(
            ("streaming", "true"),
            ("status", "ok"),
            ("reason_ratio", "0"),
            ("image_tokens", "0"),
            ("audio_tokens", "0"),
            ("video_tokens", "0"),
            ("num_chunks", "0"),
        ),
    ),
    Layout(
        name="vllm-bench",
        about="result of vllm bench serve --save-result --save-detailed; needs its start_times",
        container="document",
        time="start_times",
        unit="s",
        prompt="input_lens",
        output="output_lens",
    ),
    Layout(
        name="guidellm",
        about="GuideLLM benchmarks.json: requests of every benchmark in it, told apart as services",
        container="document",
        time="request_start_time",
        unit="s",
        prompt="prompt_tokens",
        output="output_tokens",
        service="benchmark",
        request_id="request_id",
    ),
    Layout(
        name="llmservingsim-bench",
        about="requests.jsonl of LLMServingSim's vLLM benchmark: what a real engine was asked",
        container="jsonl",
        columns=(
            "request_id",
            "input_toks",
            "output_toks",
            "arrival_time",
            "queued_ts",
            "scheduled_ts",
            "first_token_ts",
            "last_token_ts",
        ),
        time="arrival_time",
        unit="s",
        prompt="input_toks",
        output="output_toks",
        request_id="request_id",
    ),
    Layout(
        name="openai-log",
        about="JSONL of OpenAI answers, alone or beside their requests: created, usage, user, model, max_tokens",
        container="jsonl",
        time="created",
        unit="s",
        prompt="usage.prompt_tokens",
        output="usage.completion_tokens",
        limit="max_tokens",
        tenant="user",
        service="model",
        request_id="id",
        bin_s=1.0,
    ),
    Layout(
        name="gateway-log",
        about="log of tokenpools serve (logs: {style: json}); refused requests are demand without an answer",
        container="log",
        time="time",
        unit="datetime",
        prompt="prompt_tokens",
        output="output_tokens",
        limit="max_output_tokens",
        tenant="entitlement",
        service="model",
    ),
    Layout(
        name="envoy-access-log",
        about="Envoy's access log as JSON with token counts; 429, 5xx and what broke off are demand without an answer",
        container="log",
        time="start_time",
        unit="datetime",
        prompt="input_tokens",
        output="output_tokens",
        limit="max_tokens",
        tenant="tenant",
        service="model",
        session="session_id",
    ),
    Layout(
        name="litellm-spend-log",
        about="LiteLLM_SpendLogs, CSV or JSON: tenant = team, user or key; failures are demand without an answer",
        container="log",
        time="startTime",
        unit="datetime",
        prompt="prompt_tokens",
        output="completion_tokens",
        limit="proxy_server_request",
        tenant="team_id",
        service="model_group",
        session="session_id",
    ),
    Layout(
        name="vllm-log",
        about="vLLM's log with --enable-log-requests, best with --enable-log-outputs and VLLM_LOGGING_LEVEL=DEBUG",
        container="log",
        time="time",
        unit="s",
        prompt="prompt_token_ids",
        output="output_token_ids",
        limit="max_tokens",
        tenant="lora_request",
        bin_s=1.0,
    ),
    *(
        Layout(
            name=f"plain-{container}",
            about=f"tokenpools' own {kind}, every column there is; times in nanoseconds",
            container=container,
            time="time_ns",
            unit="ns",
            prompt="prompt_tokens",
            output="output_tokens",
            limit="max_output_tokens",
            tenant="tenant",
            service="service",
            session="session",
            turn="turn",
            blocks="blocks" if container != "csv" else None,
        )
        for container, kind in _PLAIN
    ),
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType({layout.name: layout for layout in _ALL})
"""The formats that can be named."""

SUFFIXES = {
    "csv": (".csv",), "jsonl": (".jsonl", ".ndjson"), "parquet": (".parquet", ".pq"), "document": (".json",),
    "log": (".log", ".txt"),
}  # fmt: skip

_SPEND_LOG = frozenset(("request_id", "startTime", "prompt_tokens", "completion_tokens"))
_ENVOY_LOG = frozenset(("start_time", "response_code"))
_GATEWAY_LOG = frozenset(("time", "level", "logger", "message"))
_VLLM_LINE = re.compile(r"\b(?:DEBUG|INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d \[", re.ASCII)


def recognised(first_line: str) -> Layout | None:
    """Return the layout of a file that begins with this line, or None where none fits."""
    text = first_line.strip()
    if text.startswith("{"):
        try:
            keys = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(keys, dict):
            return None
        if "time_ns" in keys:
            return LAYOUTS["plain-jsonl"]
        if keys.keys() >= _GATEWAY_LOG:
            return LAYOUTS["gateway-log"]
        if keys.keys() >= _ENVOY_LOG:
            return LAYOUTS["envoy-access-log"]
        if keys.keys() >= _SPEND_LOG:
            return LAYOUTS["litellm-spend-log"]
        fitting = [
            layout
            for layout in _ALL
            if layout.container == "jsonl"
            and layout.columns
            and {layout.role(role) for role in layout.has} <= set(keys)
        ]
        if fitting:  # one format's keys may be among another's
            return max(fitting, key=lambda layout: len(layout.has))
        answer = any("usage" in one for one in (keys, keys.get("response"), keys.get("body")) if isinstance(one, dict))
        return LAYOUTS["openai-log"] if answer or "response" in keys else None
    if _VLLM_LINE.search(text[:400]):
        return LAYOUTS["vllm-log"]
    if text.startswith("["):
        return LAYOUTS["litellm-spend-log"]
    names = tuple(name.strip().strip('"') for name in text.split(","))
    if set(names) >= _SPEND_LOG:
        return LAYOUTS["litellm-spend-log"]
    for layout in _ALL:
        if layout.container == "csv" and layout.columns == names:
            return layout
    if set(names) >= {"arrival_time_us", "input_tokens", "output_tokens", "tenant_id"}:
        return LAYOUTS["trace-v2"]  # later versions have more columns
    return LAYOUTS["plain-csv"] if set(names) >= {"time_ns", "prompt_tokens", "output_tokens"} else None
