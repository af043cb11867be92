"""A kubelet and an API server for tests: real HTTPS with tokens, and every way to fail.

The forms of the answers are those of Kubernetes 1.34: ``v1.PodList`` of ``GET /pods`` on the
kubelet, lists and
watches, keys of tokens, and TokenRequest on the API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import ipaddress
import json
import ssl
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sds.pki import private_key_pem
from sds.workload.kubernetes.server import KubernetesServer
from tests.support.certificates import Wish, ca_wish, common_name, self_signed
from tests.support.web_site import site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN = "the-agents-own-token"
NODE = "node1"


def container_id() -> str:
    """A fresh container ID."""
    return uuid.uuid4().hex * 2


def pod(
    name: str,
    *,
    namespace: str = "shop",
    account: str | None = "web",
    labels: dict[str, str] | None = None,
    uid: str = "",
    containers: dict[str, str] | None = None,
    image: str = "registry.example/app@sha256:" + "ab" * 32,
) -> dict[str, Any]:
    """A pod as the kubelet lists it; ``containers``: name to container ID ('' for Pending)."""
    statuses = [
        {
            "name": container,
            "image": "registry.example/app:1",
            "imageID": image if identifier else "",
            **({"containerID": f"containerd://{identifier}"} if identifier else {}),
        }
        for container, identifier in (containers or {}).items()
    ]
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or str(uuid.uuid4()),
            "labels": labels or {},
            "annotations": {"kubernetes.io/config.source": "api"},
        },
        "spec": {
            "nodeName": NODE,
            **({"serviceAccountName": account} if account else {}),
            "containers": [{"name": container} for container in containers or {}],
        },
        "status": {"phase": "Running", "containerStatuses": statuses},
    }


def service(
    name: str,
    selector: dict[str, str] | None,
    *,
    namespace: str = "shop",
    kind: str = "ClusterIP",
) -> dict[str, Any]:
    """A Service as the API server gives it."""
    spec: dict[str, Any] = {"type": kind}
    if selector is not None:
        spec["selector"] = selector
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


@dataclass(kw_only=True)
class Cluster:
    """What the servers say, changed by the test at any time.

    ``kubelet_answer`` and ``api_answer`` replace every answer: a status, bytes, or seconds of
    silence before the true one.
    """

    folder: Path
    url: str = ""
    accepted: str = TOKEN
    pods: list[dict[str, Any]] = field(default_factory=list)
    services: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    kubelet_answer: int | bytes | timedelta | None = None
    api_answer: int | bytes | timedelta | None = None
    kubelet_requests: int = 0
    lists: int = 0
    version: int = 100
    oldest_version: int = 0
    event_log: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: set[asyncio.Task[Any]] = field(default_factory=set)
    jwks: bytes = b""
    token_requests: list[dict[str, Any]] = field(default_factory=list)

    @property
    def token(self) -> str:
        """The only bearer token that is accepted; it lies in our client's token file."""
        return self.accepted

    @token.setter
    def token(self, token: str) -> None:
        self.accepted = token
        self.token_file.write_text(token + "\n")

    @property
    def ca_file(self) -> Path:
        return self.folder / "kube-ca.pem"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def kubelet(self, **more: Any) -> KubernetesServer:
        """How our client reaches the kubelet."""
        return self._server(reason="kubelet", **more)

    def api(self, **more: Any) -> KubernetesServer:
        """How our client reaches the API server."""
        return self._server(reason="kubernetes_api", **more)

    def _server(self, **more: Any) -> KubernetesServer:
        given = {"url": self.url, "ca_file": self.ca_file, "token_file": self.token_file}
        return KubernetesServer(**{**given, **more})

    def put_service(self, item: dict[str, Any]) -> None:
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        kind = "MODIFIED" if key in self.services else "ADDED"
        self.services[key] = item
        self._event(kind, item)

    def delete_service(self, namespace: str, name: str) -> None:
        self._event("DELETED", self.services.pop((namespace, name)))

    def forget_history(self) -> None:
        """As after compaction in etcd: every older version is Gone."""
        self.oldest_version = self.version + 1
        self.version += 1

    def drop_watches(self) -> None:
        """As when the API server restarts."""
        for task in list(self.watchers):
            task.cancel()

    def _event(self, kind: str, item: dict[str, Any]) -> None:
        self.version += 1
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}
        self.event_log.append((self.version, kind, item))
        self.changed.set()
        self.changed = asyncio.Event()


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """A kubelet and an API server on one loopback port."""
    state = Cluster(folder=folder)
    state.token = TOKEN
    application = web.Application()
    application.router.add_get("/pods", functools.partial(_pods, state))
    application.router.add_get("/api/v1/services", functools.partial(_services, state))
    application.router.add_get("/api/v1/pods", functools.partial(_all_pods, state))
    application.router.add_get("/openid/v1/jwks", functools.partial(_jwks, state))
    application.router.add_post(
        "/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
        functools.partial(_token, state),
    )
    async with site(application, tls=_tls(state), shutdown_seconds=0.1) as port:
        state.url = f"https://127.0.0.1:{port}"
        try:
            yield state
        finally:
            state.drop_watches()


def _tls(state: Cluster) -> ssl.SSLContext:
    now = datetime.now(UTC)
    begin, end = now - timedelta(hours=1), now + timedelta(hours=1)
    root = dataclasses.replace(ca_wish("kubernetes"), not_before=begin, not_after=end)
    ca = self_signed(root)
    names = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName(NODE))
    leaf = ca.issue(Wish(subject=common_name(NODE), names=names, not_before=begin, not_after=end))
    state.ca_file.write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    pem = state.folder / "kube-server.pem"
    pem.write_bytes(private_key_pem(leaf.key) + leaf.certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def _instead(answer: int | bytes | timedelta | None) -> web.Response | None:
    if isinstance(answer, int):
        text = "Forbidden" if answer == 403 else "no"
        return web.Response(status=answer, text=text, headers={"Retry-After": "7"})
    if isinstance(answer, bytes):
        return web.Response(body=answer)
    if answer is not None:
        await asyncio.sleep(answer.total_seconds())
    return None


def _denied(state: Cluster, request: web.Request) -> web.Response | None:
    if request.headers.get("Authorization") != f"Bearer {state.accepted}":
        return web.Response(status=401, text="Unauthorized")
    return None


async def _pods(state: Cluster, request: web.Request) -> web.Response:
    state.kubelet_requests += 1
    instead = _denied(state, request) or await _instead(state.kubelet_answer)
    items = state.pods or None  # as the kubelet: an empty node gives null
    return instead or web.json_response(
        {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}
    )


async def _services(state: Cluster, request: web.Request) -> web.StreamResponse:
    instead = _denied(state, request) or await _instead(state.api_answer)
    if instead is not None:
        return instead
    if "watch" in request.query:
        return await _watch(state, request)
    state.lists += 1
    keys = sorted(state.services)
    start, limit = int(request.query.get("continue", "0")), int(request.query.get("limit", "500"))
    limit = min(limit, 3)  # small pages, so that every test with four Services turns one
    more = str(start + limit) if start + limit < len(keys) else ""
    return web.json_response(
        {
            "kind": "ServiceList",
            "metadata": {"resourceVersion": str(state.version), "continue": more},
            "items": [state.services[key] for key in keys[start : start + limit]],
        }
    )


async def _watch(state: Cluster, request: web.Request) -> web.StreamResponse:
    version = int(request.query["resourceVersion"])
    response = web.StreamResponse()
    await response.prepare(request)
    task = asyncio.current_task()
    assert task is not None
    state.watchers.add(task)
    try:
        if version < state.oldest_version:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "metadata": {}}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        while True:
            changed = state.changed
            for number, kind, item in list(state.event_log):
                if number > version:
                    version = number
                    line = json.dumps({"type": kind, "object": item}).encode() + b"\n"
                    await response.write(line)
            await changed.wait()
    finally:
        state.watchers.discard(task)


async def _all_pods(state: Cluster, request: web.Request) -> web.StreamResponse:
    instead = _denied(state, request) or await _instead(state.api_answer)
    if instead is not None:
        return instead
    if "watch" in request.query:
        return await _watch(state, request)
    metadata = {"resourceVersion": str(state.version)}
    return web.json_response({"kind": "PodList", "metadata": metadata, "items": state.pods})


async def _jwks(state: Cluster, request: web.Request) -> web.Response:
    """As the API server: it offers this form only, and refuses who does not take it."""
    instead = _denied(state, request) or await _instead(state.api_answer)
    if instead is not None:
        return instead
    form = "application/jwk-set+json"
    if form not in request.headers.get("Accept", ""):
        return web.Response(status=406, text="Not Acceptable")
    return web.Response(body=state.jwks, content_type=form)


async def _token(state: Cluster, request: web.Request) -> web.Response:
    instead = _denied(state, request) or await _instead(state.api_answer)
    if instead is not None:
        return instead
    document = await request.json()
    state.token_requests.append({**request.match_info, **document["spec"]})
    token = f"bound-to-{document['spec']['audiences'][0]}"
    return web.json_response({**document, "status": {"token": token}}, status=201)
