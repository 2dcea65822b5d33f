"""JSON schemas for editors: what a person may write, shorthands included, each with an id of its own."""

from __future__ import annotations

from typing import Any

from sim.scenario.plugins import POLICY_KINDS
from sim.scenario.profile import Profile
from sim.scenario.registered_types import named

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def identified(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a schema with its draft and its id, ``urn:tokenpools:schema:NAME``."""
    return {"$schema": DRAFT, "$id": f"urn:tokenpools:schema:{name}", **schema}


def with_shorthands(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that takes the shorthands of pools and policies, see `sim.scenario.shorthand`."""
    shared = schema["$defs"]
    policy = shared["Policy"]["properties"]
    for kind in POLICY_KINDS:
        for definition in shared.values():
            if definition.get("properties", {}).get("kind", {}).get("const") == kind:
                definition["properties"]["name"] = policy["name"]
                definition["properties"]["autoscaler"] = policy["autoscaler"]
    by_params = {key: value for key, value in policy["params"].items() if key != "title"}
    shared["Policy"] = {"anyOf": [named(POLICY_KINDS), by_params]}
    pool = shared["Pool"]["properties"]
    pool["manifests"] = {
        "type": "string",
        "description": "give the path of a YAML file of TokenPool and TokenEntitlement manifests, e.g. pool.yaml",
    }
    shared["Pool"].pop("required", None)
    pool["profile"] = {
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/Profile"}],
        "description": pool["profile"].get("description", ""),
    }
    return schema


def profile_schema() -> dict[str, Any]:
    """Return the JSON schema of a profile file."""
    return identified(Profile.model_json_schema(), "profile")
