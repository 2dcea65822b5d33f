"""Traces that a scenario may name, and where they lie in a folder of trace data."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from workloads.formats.errors import TraceError

TRACES: Mapping[str, str] = MappingProxyType(
    {
        "azure-llm-2023/code": "azure-llm-2023/AzureLLMInferenceTrace_code.csv",
        "azure-llm-2023/conv": "azure-llm-2023/AzureLLMInferenceTrace_conv.csv",
        "azure-llm-2024/code": "azure-llm-2024/AzureLLMInferenceTrace_code_1week.csv",
        "azure-llm-2024/conv": "azure-llm-2024/AzureLLMInferenceTrace_conv_1week.csv",
        "azure-multimodal-2025": "azure-multimodal-2025/AzureLMMInferenceTrace_multimodal.csv.gz",
        "burstgpt/1": "burstgpt/BurstGPT_1.csv",
        "burstgpt/2": "burstgpt/BurstGPT_2.csv",
        "mooncake-fast25/conversation": "mooncake-fast25/conversation_trace.jsonl",
        "mooncake-fast25/toolagent": "mooncake-fast25/toolagent_trace.jsonl",
        "qwen-bailian/a": "qwen-bailian/qwen_traceA_blksz_16.jsonl",
        "qwen-bailian/b": "qwen-bailian/qwen_traceB_blksz_16.jsonl",
        "lmsys-arena-vtc": "lmsys-arena-vtc/trace.csv.gz",
        "servegen-deepseek-r1": "servegen-deepseek-r1",
        "vllm-0.19-sharegpt/rtx-4090": "vllm-0.19-sharegpt/RTX4090_Llama-3.1-8B/requests.jsonl",
        "vllm-0.19-sharegpt/rtx-pro-6000": "vllm-0.19-sharegpt/RTXPRO6000_Llama-3.1-8B/requests.jsonl",
    }
)
"""Names a scenario may use, and where each lies in the data folder."""


def cache_folder() -> Path:
    """Return where fetched traces are kept: TOKENPOOLS_CACHE, or the user's cache folder."""
    named = os.environ.get("TOKENPOOLS_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokenpools"


def locate(file: str, folder: Path | None, *, want_folder: bool = False) -> Path:
    """Return the path of a trace: a name of `TRACES`, else a path; a relative one is also tried in the data folder.

    Parameters
    ----------
    folder : the folder of trace data; None: there is none. What is not there is looked for among the fetched traces.

    Raises
    ------
    TraceError
        If there is no such file.
    """
    cache = cache_folder()
    if file in TRACES:
        candidates = [place / TRACES[file] for place in (folder, cache) if place is not None]
    else:
        candidates = [Path(file), *([folder / file] if folder is not None else [])]
    for path in candidates:
        try:
            if path.is_dir() if want_folder else path.is_file():
                return path
        except (OSError, ValueError):  # a name too long, or with a null character
            continue
    if file in TRACES:
        if folder is None:
            fix = f"tokenpools trace fetch {file.split('/')[0]}, or set TOKENPOOLS_DATA to the folder that holds it"
            raise TraceError(file, None, "not fetched yet, and no folder of trace data is named", fix)
        fix = f"put the published file there, or: tokenpools trace fetch {file.split('/')[0]}"
        raise TraceError(file, None, f"not found as {candidates[0]}", fix)
    close = difflib.get_close_matches(file, TRACES, n=1)
    fix = f"did you mean {close[0]}?" if close else f"give the path of a trace or one of {', '.join(TRACES)}"
    raise TraceError(file, None, "no such folder" if want_folder else "no such file", fix)
