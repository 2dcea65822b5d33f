"""Public traces and where their publishers keep them. Checksums are those of files that were at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

_GITHUB = "https://raw.githubusercontent.com"
_AZURE = f"{_GITHUB}/Azure/AzurePublicDataset/master/data"
_AZURE_WEEK = "https://azurepublicdatasettraces.blob.core.windows.net/azurellminfererencetrace"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file: its address, its path under the cache folder, its SHA-256 if it is known."""

    url: str
    path: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class DataSet:
    """Files that are fetched together.

    Attributes
    ----------
    by_hand : why there is nothing to fetch, and what to do instead.
    """

    title: str
    licence: str
    home: str
    files: tuple[RemoteFile, ...]
    by_hand: str = ""


def _servegen() -> tuple[RemoteFile, ...]:
    base = f"{_GITHUB}/alibaba/ServeGen/main/data/reason/deepseek-r1"
    lines = (files(__package__) / "servegen-deepseek-r1.sha256").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("  ") for line in lines]
    return tuple(RemoteFile(f"{base}/{name}", f"servegen-deepseek-r1/{name}", sha256) for sha256, name in pairs)


def _sharegpt() -> tuple[RemoteFile, ...]:
    base = f"{_GITHUB}/casys-kaist/LLMServingSim/main/bench/examples"
    known = {
        "RTX4090_Llama-3.1-8B/meta.json": "56cbcb2a08e9fe6f67d60cad8ee545f86c874f82b46ab413da484f331417b2fc",
        "RTX4090_Llama-3.1-8B/requests.jsonl": "5a6f2a0b09d5eb84bd75b30ed625d883c22b4bcc0a839cd1128ae42f74ecc90d",
        "RTX4090_Llama-3.1-8B/timeseries.csv": "f99d474f8d8a2c52f986fb27e46832a1627fc908d7570852b016573b89ab3173",
        "RTXPRO6000_Llama-3.1-8B/meta.json": "c074b29bddabe66102e3e635dd7910c35927c3f52b73d58d8fa0798f38156ae4",
        "RTXPRO6000_Llama-3.1-8B/requests.jsonl": "0175b31b0ddc02b97eb6da1410dc80fc5900b8785c988e90cacee1021d644682",
        "RTXPRO6000_Llama-3.1-8B/timeseries.csv": "de884551204aeb9c12d8bed0fa78a5eb6b85e1e0bb173e9664fd6e5f26998aed",
    }
    return tuple(RemoteFile(f"{base}/{name}", f"vllm-0.19-sharegpt/{name}", sha256) for name, sha256 in known.items())


DATA_SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "azure-llm-2023": DataSet(
            "two production services of Azure, 58 minutes",
            "CC-BY-4.0",
            "https://github.com/Azure/AzurePublicDataset",
            (
                RemoteFile(
                    f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
                    "azure-llm-2023/AzureLLMInferenceTrace_code.csv",
                    "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
                ),
                RemoteFile(
                    f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
                    "azure-llm-2023/AzureLLMInferenceTrace_conv.csv",
                    "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
                ),
            ),
        ),
        "azure-llm-2024": DataSet(
            "the same two services, a week: 44 million requests",
            "CC-BY-4.0",
            "https://github.com/Azure/AzurePublicDataset",
            tuple(
                RemoteFile(f"{_AZURE_WEEK}/{name}", f"azure-llm-2024/{name}")
                for name in ("AzureLLMInferenceTrace_code_1week.csv", "AzureLLMInferenceTrace_conv_1week.csv")
            ),
        ),
        "azure-multimodal-2025": DataSet(
            "a multimodal service of Azure",
            "CC-BY-4.0",
            "https://github.com/Azure/AzurePublicDataset",
            (
                RemoteFile(
                    f"{_AZURE}/AzureLMMInferenceTrace_multimodal.csv.gz",
                    "azure-multimodal-2025/AzureLMMInferenceTrace_multimodal.csv.gz",
                ),
            ),
        ),
        "burstgpt": DataSet(
            "a campus's calls of Azure OpenAI, 121 days",
            "CC-BY-4.0",
            "https://github.com/HPMLL/BurstGPT",
            tuple(
                RemoteFile(f"{_GITHUB}/HPMLL/BurstGPT/main/data/{name}", f"burstgpt/{name}")
                for name in ("BurstGPT_1.csv", "BurstGPT_2.csv")
            ),
        ),
        "mooncake-fast25": DataSet(
            "conversations and tool agents of Kimi, with prefix blocks",
            "Apache-2.0",
            "https://github.com/kvcache-ai/Mooncake",
            (
                RemoteFile(
                    f"{_GITHUB}/kvcache-ai/Mooncake/main/FAST25-release/traces/conversation_trace.jsonl",
                    "mooncake-fast25/conversation_trace.jsonl",
                    "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
                ),
                RemoteFile(
                    f"{_GITHUB}/kvcache-ai/Mooncake/main/FAST25-release/traces/toolagent_trace.jsonl",
                    "mooncake-fast25/toolagent_trace.jsonl",
                ),
            ),
        ),
        "qwen-bailian": DataSet(
            "two services of Alibaba Bailian, with conversations and prefix blocks",
            "Apache-2.0",
            "https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon",
            tuple(
                RemoteFile(f"{_GITHUB}/alibaba-edu/qwen-bailian-usagetraces-anon/main/{name}", f"qwen-bailian/{name}")
                for name in ("qwen_traceA_blksz_16.jsonl", "qwen_traceB_blksz_16.jsonl")
            ),
        ),
        "servegen-deepseek-r1": DataSet(
            "distributions of 73 production clients of a reasoning model, a day",
            "Apache-2.0",
            "https://github.com/alibaba/ServeGen",
            _servegen(),
        ),
        "vllm-0.19-sharegpt": DataSet(
            "what two real vLLM servers were asked, and how they did",
            "MIT",
            "https://github.com/casys-kaist/LLMServingSim",
            _sharegpt(),
        ),
        "lmsys-arena-vtc": DataSet(
            "27 tenants of the LMSYS Arena, 10 minutes",
            "Apache-2.0",
            "https://github.com/Ying1123/VTC-artifact",
            (),
            by_hand="the publisher's file is a pickle, which can run code when read; convert it where you trust it",
        ),
    }
)
"""By the folder that they are kept in."""
