"""An adversary who writes to etcd, on a real cluster: what each of its ways ends in.

The deployment is that of confidential guests (deploy/overlays/snp with deploy/components/cri and a
signed policy) on a simulated chip. In the namespace ``shop`` identities depend on what the runtime
says, in ``claims`` on what the API server says. docs/threat-model.md promises nothing for the
second kind; the tests show that, so that nobody builds on it.

* ``SDS_NODE_SHELL``: a command that runs another one on the node that has etcd, such as
  ``ssh node``. ``SDS_ETCD``: etcd's address there (``http://127.0.0.1:2379``).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cluster import (
    AGENT,
    ENVOY,
    SYSTEM,
    attempt,
    check_unused,
    delete,
    kubectl,
    rolled_out,
    until,
)
from tests.support.guest_cluster import (
    EVERYTHING,
    NAMESPACES,
    SOCKET,
    GuestCluster,
    container,
    pod,
)
from tests.support.policies import Signatory
from tests.support.process import output

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = shlex.split(os.environ.get("SDS_NODE_SHELL", ""))
ETCD = os.environ.get("SDS_ETCD", "http://127.0.0.1:2379")
NAME = "spiffe://{trust_domain}/ns/{namespace}/sa/%s"
KEPT = pod("kept", "shop", "orders")

pytestmark = pytest.mark.timeout(900)


def rules(contents: str, image: str) -> list[dict[str, Any]]:
    """Rules on the runtime's word in ``shop``, and on the API server's in ``claims``."""

    def rule(name: str, account: str, **match: str) -> dict[str, Any]:
        return {
            "name": name,
            "match": match,
            "spiffe_id": NAME % account,
            "service_dns_names": ["*.{namespace}.svc"],
        }

    claims, shop = {"k8s:ns": "claims"}, {"k8s:ns": "shop"}
    return [
        rule("by-runtime", "orders", **shop, **{"cri:pod-digest": contents}),
        rule("claimed-image", "vault", **claims, **{"k8s:image-digest": image}),
        rule("claimed-account", "orders", **claims, **{"k8s:sa": "orders"}),
        rule("claimed-label", "back", **claims, **{"k8s:pod-label:tier": "back"}),
    ]


async def install(cluster: GuestCluster) -> str:
    """Everything, the pod that may have an identity, and the digest of an image that may not."""
    await check_unused(SYSTEM, *NAMESPACES)
    cluster.prepare()
    for namespace in (SYSTEM, *NAMESPACES):
        await kubectl("create", "namespace", namespace)
    for namespace in NAMESPACES:
        for account in ("orders", "nobody"):
            await kubectl("create", "serviceaccount", "-n", namespace, account)
    await cluster.put_document(cluster.document(1))
    await cluster.apply()
    other = {"name": "main", "image": ENVOY, "args": ["--config-yaml", "{}"]}
    await cluster.start(pod("vault", "claims", "nobody", other))
    await cluster.start(KEPT)
    path = "jsonpath={.status.containerStatuses[0].imageID}"
    image = (await kubectl("get", "pod", "-n", "claims", "vault", "-o", path)).rpartition("@")[2]
    cluster.pods = [await cluster.contents(KEPT)]
    cluster.settings["agent"]["node"]["cri"] = {"pods": cluster.pods}
    await cluster.apply()
    await cluster.put_document(with_rules(cluster, 2, image))
    await cluster.in_force(2)
    return image


def with_rules(cluster: GuestCluster, epoch: int, image: str, **fields: Any) -> dict[str, Any]:
    from sds.workload.cri.settings import PodContents  # noqa: PLC0415

    contents = PodContents.model_validate(cluster.pods[0])
    fields.setdefault("dns_names", ["front.claims.svc", "front.shop.svc"])
    return cluster.document(epoch, workloads=rules(contents.digest, image), **fields)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GuestCluster, str]]:
    cluster = GuestCluster(tmp_path_factory.mktemp("guest"))

    async def remove() -> None:
        for namespace in NAMESPACES:
            await attempt("delete", "namespace", namespace, "--ignore-not-found", "--wait=true")
        await delete(cluster.kustomization)
        await attempt("delete", "namespace", SYSTEM, "--ignore-not-found", "--wait=true")

    try:
        yield cluster, asyncio.run(install(cluster))
    finally:
        asyncio.run(remove())


@pytest.fixture
def guest(installed: tuple[GuestCluster, str]) -> GuestCluster:
    return installed[0]


@pytest.fixture
def image(installed: tuple[GuestCluster, str]) -> str:
    return installed[1]


async def etcd(call: str, **body: str) -> dict[str, Any]:
    """A call of etcd's own interface, past the API server."""
    if not NODE:
        pytest.skip("SDS_NODE_SHELL names no command that reaches etcd")
    plain = json.dumps({k: base64.b64encode(v.encode()).decode() for k, v in body.items()})
    return await _etcd(call, plain)


async def _etcd(call: str, plain: str) -> dict[str, Any]:
    words = [*NODE, "curl", "-sf", f"{ETCD}/v3/kv/{call}", "-d", plain]
    status, out, error = await output(words, seconds=30)
    assert status == 0, error
    return dict(json.loads(out))


async def replace_in_etcd(key: str, before: str, after: str) -> None:
    """Replace text of an object in etcd by other text of the same length."""
    assert len(before) == len(after)
    found = await etcd("range", key=key)
    value = base64.b64decode(found["kvs"][0]["value"])
    assert before.encode() in value
    changed = base64.b64encode(value.replace(before.encode(), after.encode())).decode()
    where = base64.b64encode(key.encode()).decode()
    await _etcd("put", json.dumps({"key": where, "value": changed}))


async def claim_image(namespace: str, name: str, image: str) -> None:
    """Write another image into a pod's status, as the kubelet does."""
    path = "/status/containerStatuses/0/imageID"
    change = [{"op": "replace", "path": path, "value": f"registry.example/vault@{image}"}]
    words = ["--subresource=status", "--type=json", "-p", json.dumps(change)]
    await kubectl("patch", "pod", "-n", namespace, name, *words)


async def test_the_listed_pod_has_its_identity(guest: GuestCluster) -> None:
    await guest.start(KEPT)
    found = await guest.ask("shop", "kept")
    (identity,) = found["identities"]
    assert identity["spiffe_id"] == "spiffe://example.org/ns/shop/sa/orders"
    assert identity["rule"] == "by-runtime"


async def test_an_image_digest_that_somebody_writes_into_a_pods_status(
    guest: GuestCluster, image: str
) -> None:
    await guest.start(pod("imposter", "claims", "nobody"))
    await guest.start(pod("imposter", "shop", "orders", container(args=["of", "its", "own"])))

    async def claimed() -> str | None:
        await claim_image("claims", "imposter", image)
        return await guest.identity("claims", "imposter")

    # The kubelet repeats the API server's word: not protected.
    assert await guest.identity("claims", "imposter") is None
    await until(claimed, lambda found: found == "spiffe://example.org/ns/claims/sa/vault", 60)
    # The runtime's word does not change.
    for _ in range(3):
        await claim_image("shop", "imposter", image)
        found = await guest.ask("shop", "imposter")
        assert not found["identities"]
    assert "by-runtime" in found["why"]


async def test_a_service_account_that_somebody_writes_into_etcd(guest: GuestCluster) -> None:
    for namespace in NAMESPACES:
        await guest.start(pod("imposter", namespace, "nobody"))
        assert await guest.identity(namespace, "imposter") is None
        await replace_in_etcd(f"/registry/pods/{namespace}/imposter", "nobody", "orders")
        path = "jsonpath={.spec.serviceAccountName}"
        found = await kubectl("get", "pod", "-n", namespace, "imposter", "-o", path)
        assert found == "orders"
    await until(
        lambda: guest.identity("claims", "imposter"),
        lambda found: found == "spiffe://example.org/ns/claims/sa/orders",
        60,
    )


async def test_a_label_that_somebody_adds(guest: GuestCluster) -> None:
    for namespace in NAMESPACES:
        await guest.start(pod("imposter", namespace, "nobody"))
        await kubectl("label", "pod", "-n", namespace, "imposter", "tier=back")
    await until(
        lambda: guest.identity("claims", "imposter"),
        lambda found: found == "spiffe://example.org/ns/claims/sa/back",
        60,
    )
    found = await guest.ask("shop", "imposter")
    print(json.dumps(found))
    assert not found["identities"]


async def test_the_true_image_with_other_arguments_and_a_sidecar(guest: GuestCluster) -> None:
    shared = {"name": "shared", "mountPath": "/shared"}
    mounts = [*container()["volumeMounts"], shared]
    steal = f"sds get default --socket {SOCKET} --show-private-key > /shared/key; sleep 86400"
    thief = container(command=["sh", "-c", steal], volumeMounts=mounts)
    reader = container("reader", volumeMounts=[shared])
    volumes = [{"name": "shared", "emptyDir": {}}]
    for containers in ([thief], [container(), reader], [thief, reader]):
        manifest = pod("kept-too", "shop", "orders", *containers, volumes=volumes)
        await guest.start(manifest)
        found = await guest.ask("shop", "kept-too")
        assert not found["identities"]
        there = json.loads(await kubectl("get", "pod", "-n", "shop", "kept-too", "-o", "json"))
        uid = there["metadata"]["uid"]
        line = await guest.said("a pod is not what a list says", uid)
        assert "container" in json.dumps(line)
    path = ["sh", "-c", "cat /shared/key; ls -l /shared/key >&2"]
    _, key, _ = await attempt("exec", "-n", "shop", "kept-too", "-c", "reader", "--", *path)
    assert "PRIVATE KEY" not in key


async def test_a_container_that_joins_a_running_pod(guest: GuestCluster) -> None:
    await guest.start(KEPT)
    assert await guest.identity("shop", "kept") == "spiffe://example.org/ns/shop/sa/orders"
    joins = {
        "spec": {
            "ephemeralContainers": [
                {"name": "debug", "image": container()["image"], "command": ["sleep", "86400"]}
            ]
        }
    }
    words = ["--subresource=ephemeralcontainers", "--type=strategic", "-p", json.dumps(joins)]
    await kubectl("patch", "pod", "-n", "shop", "kept", *words)
    await until(lambda: guest.identity("shop", "kept"), lambda found: found is None, 60)
    await guest.said("a pod is not what a list says", "debug")


async def test_the_selector_of_a_service(guest: GuestCluster) -> None:
    await guest.start(pod("claimed", "claims", "orders", labels={"app": "claimed"}))
    for name in ("front", "stolen"):
        words = ["service", "clusterip", "-n", "claims", name, "--tcp=8443"]
        await kubectl("create", *words)
        selector = {"spec": {"selector": {"app": "claimed"}}}
        await kubectl("patch", "service", "-n", "claims", name, "-p", json.dumps(selector))
    found = await guest.ask("claims", "claimed")
    print(json.dumps(found), await attempt("exec", "-n", SYSTEM, AGENT, "--", "sds", "status", "--run-dir", "/run/attested-sds"))
