"""A stand-in for the Kubernetes API server, faithful in what an operator depends on.

List and watch by resourceVersion (410 for one that is forgotten), merge and JSON patches with 409 for another version,
the subresources status and scale, generations, finalizers, owners (what belongs to nobody is collected), server-side
tables by additionalPrinterColumns, schemas and rules in CEL of custom resources (422), and discovery, so that
the real kubectl speaks to it. What it lacks: authentication, admission, defaults and pruning, field management,
strategic patches.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from adapters.crd_schema import faults

ROOT = Path(__file__).parents[2]
CRDS = [one for one in yaml.safe_load_all((ROOT / "deploy/kubernetes/crds.yaml").read_text()) if one]
BUILT_IN = {
    ("", "v1", "namespaces"): "Namespace", ("", "v1", "events"): "Event", ("", "v1", "configmaps"): "ConfigMap",
    ("events.k8s.io", "v1", "events"): "Event", ("apps", "v1", "statefulsets"): "StatefulSet",
    ("apps", "v1", "deployments"): "Deployment", ("coordination.k8s.io", "v1", "leases"): "Lease",
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions"): "CustomResourceDefinition",
    ("kopf.dev", "v1", "kopfpeerings"): "KopfPeering",
}  # fmt: skip
CLUSTERED = {"namespaces", "customresourcedefinitions"}

Object = dict[str, Any]
Kind = tuple[str, str, str]


class KubeApi:
    """The server; every method that changes something may be called from any thread.

    Attributes
    ----------
    conflicts : how many of the next writes are answered with 409, as if somebody had been faster.
    failures : how many of the next requests are answered with 500.
    requests : method and path of everything that was asked, and whether it watches.
    """

    def __init__(self) -> None:
        self.kinds: dict[Kind, str] = dict(BUILT_IN)
        self.columns: dict[Kind, list[Any]] = {}
        self.schemas: dict[Kind, Any] = {}
        for crd in CRDS:
            spec, version = crd["spec"], crd["spec"]["versions"][0]
            kind = (spec["group"], version["name"], spec["names"]["plural"])
            self.kinds[kind] = spec["names"]["kind"]
            self.columns[kind] = version.get("additionalPrinterColumns", [])
            self.schemas[kind] = version["schema"]["openAPIV3Schema"]
        self.objects: dict[tuple[Kind, str, str], Object] = {}
        self.log: list[tuple[int, Kind, str, Object]] = []
        self.forgotten = 0
        self.conflicts = self.failures = 0
        self.requests: list[tuple[str, str, bool]] = []
        self.port = 0
        self._versions = itertools.count(1)
        self._watchers: set[asyncio.Event] = set()
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: set[web.StreamResponse] = set()

    # ----------------------------------------------------------------------------------------------------------------
    # What tests call

    def put(self, body: Object, namespace: str = "default", *, status: Object | None = None) -> Object:
        """Create an object, or replace its spec."""
        kind = self._kind_of(body)
        name = body["metadata"]["name"]
        with self._lock:
            have = self.objects.get((kind, namespace, name))
            found = copy.deepcopy(have) if have else {}
            found |= {key: copy.deepcopy(value) for key, value in body.items() if key != "metadata"}
            metadata = found.setdefault("metadata", {}) | body["metadata"]
            found["metadata"] = metadata
            if status is not None:
                found["status"] = copy.deepcopy(status)
            if have is None:
                return self._created(kind, namespace, found)
            return self._changed(kind, namespace, have, found)

    def get(self, plural: str, name: str, namespace: str = "default") -> Object | None:
        with self._lock:
            for (kind, where, called), one in self.objects.items():
                if (kind[2], where, called) == (plural, namespace, name):
                    return copy.deepcopy(one)
        return None

    def all(self, plural: str) -> list[Object]:
        with self._lock:
            return [copy.deepcopy(one) for (kind, _, _), one in self.objects.items() if kind[2] == plural]

    def delete(self, plural: str, name: str, namespace: str = "default") -> None:
        with self._lock:
            for key in [key for key in self.objects if (key[0][2], key[1], key[2]) == (plural, namespace, name)]:
                self._delete(*key)

    def forget(self) -> None:
        """Compact: watches end, and those that go on from before are answered with 410."""
        with self._lock:
            self.forgotten = next(self._versions)
            self.log.clear()
        self._wake()

    # ----------------------------------------------------------------------------------------------------------------

    def _kind_of(self, body: Mapping[str, Any]) -> Kind:
        group, _, version = body["apiVersion"].rpartition("/")
        return next(key for key, kind in self.kinds.items() if key[:2] == (group, version) and kind == body["kind"])

    def _created(self, kind: Kind, namespace: str, body: Object) -> Object:
        metadata = body["metadata"]
        version = next(self._versions)
        metadata |= {
            "uid": f"uid-{version}", "generation": 1, "creationTimestamp": f"2026-01-01T00:{version // 60 % 60:02}:"
            f"{version % 60:02}Z", "resourceVersion": str(version),
        }  # fmt: skip
        if kind[2] not in CLUSTERED:
            metadata["namespace"] = namespace
        self.objects[kind, namespace, metadata["name"]] = body
        self._say(version, kind, "ADDED", body)
        return copy.deepcopy(body)

    def _changed(self, kind: Kind, namespace: str, have: Object, body: Object) -> Object:
        if {**body, "metadata": None} == {**have, "metadata": None} and _plain(body) == _plain(have):
            return copy.deepcopy(have)
        metadata = body["metadata"]
        for name in ("uid", "creationTimestamp", "namespace", "generation", "deletionTimestamp"):
            if name in have["metadata"]:
                metadata[name] = have["metadata"][name]
        if body.get("spec") != have.get("spec"):
            metadata["generation"] += 1
        version = next(self._versions)
        metadata["resourceVersion"] = str(version)
        key = (kind, namespace, metadata["name"])
        self.objects[key] = body
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._gone(*key)
        else:
            self._say(version, kind, "MODIFIED", body)
        return copy.deepcopy(body)

    def _delete(self, kind: Kind, namespace: str, name: str) -> None:
        one = self.objects[kind, namespace, name]
        if not one["metadata"].get("finalizers"):
            self._gone(kind, namespace, name)
        elif "deletionTimestamp" not in one["metadata"]:
            body = copy.deepcopy(one)
            version = next(self._versions)
            body["metadata"] |= {"deletionTimestamp": "2026-01-02T00:00:00Z", "resourceVersion": str(version)}
            self.objects[kind, namespace, name] = body
            self._say(version, kind, "MODIFIED", body)

    def _gone(self, kind: Kind, namespace: str, name: str) -> None:
        one = self.objects.pop((kind, namespace, name))
        version = next(self._versions)
        self._say(version, kind, "DELETED", one | {"metadata": one["metadata"] | {"resourceVersion": str(version)}})
        uid = one["metadata"]["uid"]
        for key, other in list(self.objects.items()):
            if any(owner["uid"] == uid for owner in other["metadata"].get("ownerReferences", ())):
                self._delete(*key)

    def _say(self, version: int, kind: Kind, what: str, one: Object) -> None:
        self.log.append((version, kind, what, copy.deepcopy(one)))
        self._wake()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(lambda: [each.set() for each in self._watchers])

    # ----------------------------------------------------------------------------------------------------------------
    # HTTP

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, "watch" in request.query))
        if self.failures:
            self.failures -= 1
            return _status(500, "InternalError", "so it was asked")
        parts = request.path.strip("/").split("/")
        if parts in (["version"], ["healthz"]):
            return web.json_response({"major": "1", "minor": "32", "gitVersion": "v1.32.0"})
        if parts[0] not in ("api", "apis"):
            return _status(404, "NotFound", request.path)
        if len(parts) == 1 or len(parts) == 2 + (parts[0] == "apis") or (parts[0] == "apis" and len(parts) == 2):
            return self._discovery(parts)
        group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        kind = (group, version, rest[0])
        if kind not in self.kinds:
            return _status(404, "NotFound", request.path)
        if len(rest) == 1:
            if request.method == "POST":
                return self._create(kind, namespace, await request.json())
            if request.query.get("watch") in ("1", "true"):
                return await self._watch(request, kind, namespace)
            return self._list(request, kind, namespace)
        return await self._one(request, kind, namespace, rest[1], rest[2] if len(rest) > 2 else "")

    def _discovery(self, parts: list[str]) -> web.Response:
        groups = sorted({key[0] for key in self.kinds if key[0]})
        if parts == ["api"]:
            return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
        if parts == ["apis"]:
            listed = [
                {"name": group, "versions": [one := {"groupVersion": f"{group}/v1", "version": "v1"}],
                 "preferredVersion": one} for group in groups
            ]  # fmt: skip
            return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": listed})
        group = "" if parts[0] == "api" else parts[1]
        if group and group not in groups:
            return _status(404, "NotFound", group)
        resources = []
        for (of, _, plural), kind in self.kinds.items():
            if of == group:
                names = next((one["spec"]["names"] for one in CRDS if one["spec"]["names"]["plural"] == plural), {})
                verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
                resources.append({
                    "name": plural, "singularName": kind.lower(), "namespaced": plural not in CLUSTERED, "kind": kind,
                    "verbs": verbs, "shortNames": names.get("shortNames", []),
                })  # fmt: skip
                if group.startswith("inference") or group == "apps":
                    resources.append({
                        "name": f"{plural}/status", "singularName": "", "namespaced": True, "kind": kind,
                        "verbs": ["get", "patch", "update"],
                    })  # fmt: skip
        version = f"{group}/v1" if group else "v1"
        return web.json_response({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources,
        })  # fmt: skip

    def _create(self, kind: Kind, namespace: str, body: Object) -> web.Response:
        with self._lock:
            if "generateName" in body["metadata"]:
                body["metadata"].setdefault("name", f"{body['metadata']['generateName']}{len(self.objects)}")
            if (kind, namespace, body["metadata"]["name"]) in self.objects:
                return _status(409, "AlreadyExists", "it is there already")
            body |= {"kind": self.kinds[kind], "apiVersion": "/".join(filter(None, kind[:2]))}
            if wrong := self._faults(kind, body):
                return _status(422, "Invalid", wrong)
            return web.json_response(self._created(kind, namespace, body), status=201)

    def _faults(self, kind: Kind, new: Object, *old: Object) -> str:
        """Return why an object cannot be, by the schema and the rules of its kind."""
        schema = self.schemas.get(kind)
        found = [] if schema is None else faults(schema, new, *old)
        return f"{new['metadata']['name']}: {'; '.join(found)}" if found else ""

    def _list(self, request: web.Request, kind: Kind, namespace: str) -> web.Response:
        with self._lock:
            items = [
                copy.deepcopy(one) for (of, where, _), one in self.objects.items()
                if of == kind and namespace in ("", where)
            ]  # fmt: skip
            version = str(next(self._versions))
        if "as=Table" in request.headers.get("accept", ""):
            return web.json_response(self._table(kind, items, version))
        return web.json_response({
            "kind": f"{self.kinds[kind]}List", "apiVersion": "/".join(filter(None, kind[:2])), "items": items,
            "metadata": {"resourceVersion": version},
        })  # fmt: skip

    def _table(self, kind: Kind, items: list[Object], version: str) -> Object:
        columns = self.columns.get(kind, [])
        named = [{"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0}]
        named += [{"format": "", "description": "", "priority": 0} | {
            name: one[name] for name in ("name", "type", "priority") if name in one
        } for one in columns]  # fmt: skip
        rows = [
            {"cells": [one["metadata"]["name"], *(_at(one, column["jsonPath"]) for column in columns)],
             "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": one["metadata"]}}
            for one in items
        ]  # fmt: skip
        return {
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version},
            "columnDefinitions": named, "rows": rows,
        }  # fmt: skip

    async def _watch(self, request: web.Request, kind: Kind, namespace: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        woken = asyncio.Event()
        self._watchers.add(woken)
        try:
            while True:
                woken.clear()
                with self._lock:
                    if since < self.forgotten:
                        gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                        await response.write(_line("ERROR", gone))
                        return response
                    news = [one for one in self.log if one[0] > since and one[1] == kind]
                for version, _, what, one in news:
                    since = version
                    if namespace in ("", one["metadata"].get("namespace", "")):
                        await response.write(_line(what, one))
                await woken.wait()
        except (ConnectionResetError, asyncio.CancelledError):
            return response
        finally:
            self._watchers.discard(woken)

    async def _one(
        self, request: web.Request, kind: Kind, namespace: str, name: str, sub: str
    ) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        patches = request.content_type == "application/json-patch+json"
        with self._lock:
            have = self.objects.get((kind, namespace, name))
            if have is None:
                return _status(404, "NotFound", f"{kind[2]} {name} not found")
            if request.method == "GET":
                return web.json_response(_scale(have) if sub == "scale" else have)
            if self.conflicts:
                self.conflicts -= 1
                return _status(409, "Conflict", "the object has been modified")
            if request.method == "DELETE":
                self._delete(kind, namespace, name)
                return _status(200, "", "")
            if request.method != "PATCH":
                return _status(405, "MethodNotAllowed", request.method)
            if patches:
                found = copy.deepcopy(have)
                for step in body:
                    if not _json_patch(found, step):
                        return _status(422, "Invalid", f"the test of {step['path']} failed")
            else:
                asked = (body.get("metadata") or {}).get("resourceVersion")
                if asked is not None and asked != have["metadata"]["resourceVersion"]:
                    return _status(409, "Conflict", "the object has been modified")
                found = _merged(have, body)
            if sub == "status":
                found = have | {"status": found.get("status"), "metadata": found["metadata"]}
            elif not sub and self.columns.get(kind) is not None and "status" in have:
                found["status"] = have["status"]  # a resource with a status has it by its subresource alone
            # What was wrong before and is not changed may stay (CRD validation ratcheting).
            if found.get("spec") != have.get("spec") and (wrong := self._faults(kind, found, have)):
                return _status(422, "Invalid", wrong)
            return web.json_response(self._changed(kind, namespace, have, copy.deepcopy(found)))


def _plain(one: Object) -> Object:
    return {name: value for name, value in one["metadata"].items() if name != "resourceVersion"}


def _line(what: str, one: Object) -> bytes:
    return json.dumps({"type": what, "object": one}).encode() + b"\n"


def _status(code: int, reason: str, message: str) -> web.Response:
    said = {"kind": "Status", "apiVersion": "v1", "status": "Failure" if code >= 400 else "Success", "code": code,
            "reason": reason, "message": message}  # fmt: skip
    return web.json_response(said, status=code)


def _scale(one: Object) -> Object:
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": one["metadata"],
            "spec": {"replicas": one["spec"]["replicas"]}}  # fmt: skip


def _merged(have: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    found = copy.deepcopy(have) if isinstance(have, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _merged(found.get(name), value)
    return found


def _json_patch(found: Any, step: Mapping[str, Any]) -> bool:
    """RFC 6902, as far as it is sent here; whether a test holds."""
    *path, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:]]
    place = found
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    index: Any = int(last) if isinstance(place, list) and last.isdigit() else last
    if step["op"] == "test":
        have = place[index] if isinstance(place, list) and index < len(place) else (
            place.get(index) if isinstance(place, dict) else None
        )  # fmt: skip
        return bool(have == step["value"])
    if step["op"] == "remove":
        del place[index]
    elif isinstance(place, list) and last == "-":
        place.append(step["value"])
    elif isinstance(place, list) and step["op"] == "add":
        place.insert(index, step["value"])
    else:
        place[index] = step["value"]
    return True


def _at(one: Any, path: str) -> Any:
    """The part of JSONPath that printer columns here use: names, and a condition by its type."""
    for part in path.replace('[?(@.type=="', ".?").replace('")]', "").strip(".").split("."):
        if part.startswith("?"):
            one = next((each for each in one or () if each.get("type") == part[1:]), None)
        else:
            one = one.get(part) if isinstance(one, dict) else None
    return one


@asynccontextmanager
async def _serving(api: KubeApi) -> AsyncIterator[None]:
    api._loop = asyncio.get_running_loop()
    runner = web.AppRunner(api.application(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", api.port)
    await site.start()
    assert site._server is not None
    api.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield
    finally:
        await runner.cleanup()


@contextmanager
def kube_api() -> Iterator[KubeApi]:
    """Serve in a thread of its own."""
    api, started, stopping = KubeApi(), threading.Event(), threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def go() -> None:
        stop = asyncio.Event()
        async with _serving(api):
            loops.append((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(go()), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield api
    finally:
        stopping.set()
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
