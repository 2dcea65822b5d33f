"""Say which images of deploy/ are not named by digest: ``python deploy/check_images.py``; exit code 1 if there are any.

Looked at are the Kubernetes manifests with the images of their kustomization, and what the environment gives compose
and the Dockerfile.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parent
BY_DIGEST = re.compile(r"[\w.:/-]+@sha256:[0-9a-f]{64}", re.ASCII)
VARIABLES = ("PYTHON_IMAGE", "REDIS_IMAGE")


def images_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield where an image is named and its name, as ``kubectl kustomize`` would have it."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    changed: dict[str, str] = {}
    for one in kustomization.get("images", ()):
        tail = f"@{one['digest']}" if "digest" in one else f":{one['newTag']}" if "newTag" in one else ""
        changed[one["name"]] = one.get("newName", one["name"]) + tail
    for name in kustomization["resources"]:
        for document in yaml.safe_load_all((folder / name).read_text(encoding="utf-8")):
            for container in containers_of(document):
                image = container["image"]
                yield f"{name}: {container['name']}", changed.get(image, image)


def containers_of(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the containers of a workload."""
    spec = document.get("spec", {}).get("template", {}).get("spec", {})
    for kind in ("initContainers", "containers"):
        yield from spec.get(kind, ())


def floating(images: Mapping[str, str]) -> list[str]:
    """Return a line for each image that may be another one tomorrow."""
    return [f"{place}: {image or 'not given'}" for place, image in images.items() if not BY_DIGEST.fullmatch(image)]


def main() -> None:
    """Check what deploy/ and the environment say."""
    found = dict(images_of(DEPLOY / "kubernetes"))
    found |= {name: os.environ.get(name, "") for name in VARIABLES}
    lines = floating(found)
    for line in lines:
        print(line)
    if lines:
        print("name each by digest, NAME@sha256:...; docker buildx imagetools inspect NAME shows it", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
