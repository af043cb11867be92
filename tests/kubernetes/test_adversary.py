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
import yaml
from click.testing import CliRunner

from sds import cli
from sds.workload.cri.settings import PodContents
from tests.support import istio_objects
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
from tests.support.policies import Signatory, sign
from tests.support.process import output

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODE = shlex.split(os.environ.get("SDS_NODE_SHELL", ""))
ETCD = os.environ.get("SDS_ETCD", "http://127.0.0.1:2379")
NAME = "spiffe://{trust_domain}/ns/{namespace}/sa/%s"
KEPT = pod("kept", "shop", "orders")

pytestmark = pytest.mark.timeout(900)


def rules(contents: str, image: str) -> list[dict[str, Any]]:
    """Rules on the runtime's word in ``shop``, and on the API server's in ``claims``."""

    def rule(name: str, account: str, **match: str) -> dict[str, Any]:
        return {"name": name, "match": match, "spiffe_id": NAME % account}

    claims, shop = {"k8s:ns": "claims"}, {"k8s:ns": "shop"}
    runtime = rule("by-runtime", "orders", **shop, **{"cri:pod-digest": contents})
    return [
        {**runtime, "dns_names": ["orders.shop.svc"]},
        rule("claimed-image", "vault", **claims, **{"k8s:image-digest": image}),
        {
            **rule("claimed-account", "orders", **claims, **{"k8s:sa": "orders"}),
            "service_dns_names": ["front.claims.svc"],
        },
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
    contents = PodContents.model_validate(cluster.pods[0])
    fields.setdefault("dns_names", ["front.claims.svc", "orders.shop.svc"])
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


def imposter(namespace: str) -> dict[str, Any]:
    """A pod that no list has: the measured image with a command of somebody else."""
    return pod("imposter", namespace, "nobody", container(args=["something", "else"]))


async def refused(guest: GuestCluster, name: str = "imposter") -> None:
    """The pod in ``shop`` gets nothing, and is told which of its containers no list has."""
    found = await guest.ask("shop", name)
    assert not found["identities"]
    assert "the pod is not what a list says: container " in found["why"]


async def test_the_listed_pod_has_its_identity(guest: GuestCluster) -> None:
    await guest.start(KEPT)
    found = await guest.ask("shop", "kept")
    (identity,) = found["identities"]
    assert identity["spiffe_id"] == "spiffe://example.org/ns/shop/sa/orders"
    assert identity["rule"] == "by-runtime"


async def test_an_image_digest_that_somebody_writes_into_a_pods_status(
    guest: GuestCluster, image: str
) -> None:
    for namespace in NAMESPACES:
        await guest.start(imposter(namespace))

    async def claimed() -> str | None:
        await claim_image("claims", "imposter", image)
        return await guest.identity("claims", "imposter")

    # The kubelet repeats the API server's word: not protected.
    assert await guest.identity("claims", "imposter") is None
    await until(claimed, lambda found: found == "spiffe://example.org/ns/claims/sa/vault", 60)
    # The runtime's word does not change.
    for _ in range(3):
        await claim_image("shop", "imposter", image)
        await refused(guest)


async def test_a_service_account_that_somebody_writes_into_etcd(guest: GuestCluster) -> None:
    for namespace in NAMESPACES:
        await guest.start(imposter(namespace))
        assert await guest.identity(namespace, "imposter") is None
        await replace_in_etcd(f"/registry/pods/{namespace}/imposter", "nobody", "orders")
        path = "jsonpath={.spec.serviceAccountName}"
        found = await kubectl("get", "pod", "-n", namespace, "imposter", "-o", path)
        assert found == "orders"
    # The API server's word: not protected. The runtime's word knows no account.
    await until(
        lambda: guest.identity("claims", "imposter"),
        lambda found: found == "spiffe://example.org/ns/claims/sa/orders",
        60,
    )
    await refused(guest)


async def test_a_label_that_somebody_adds(guest: GuestCluster) -> None:
    for namespace in NAMESPACES:
        await guest.start(imposter(namespace))
        await kubectl("label", "pod", "-n", namespace, "imposter", "tier=back")
    await until(
        lambda: guest.identity("claims", "imposter"),
        lambda found: found == "spiffe://example.org/ns/claims/sa/back",
        60,
    )
    await refused(guest)


async def test_the_true_image_with_other_arguments_and_a_sidecar(guest: GuestCluster) -> None:
    shared = {"name": "shared", "mountPath": "/shared"}
    mounts = [*container()["volumeMounts"], shared]
    steal = f"sds get default --socket {SOCKET} --show-private-key > /shared/key; sleep 86400"
    thief = container(command=["sh", "-c", steal], volumeMounts=mounts)
    reader = container("reader", volumeMounts=[shared])
    volumes = [{"name": "shared", "emptyDir": {}}]
    for containers in ([thief], [container(), reader], [thief, reader]):
        await guest.start(pod("kept-too", "shop", "orders", *containers, volumes=volumes))
        await refused(guest, "kept-too")
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
    """Names that the API server gives are bounded by the signed policy."""
    await guest.start(pod("claimed", "claims", "orders", labels={"app": "claimed"}))
    for name in ("front", "stolen"):
        await kubectl("create", "service", "clusterip", "-n", "claims", name, "--tcp=8443")
        selector = {"spec": {"selector": {"app": "claimed"}}}
        await kubectl("patch", "service", "-n", "claims", name, "-p", json.dumps(selector))
    # The rule bounds names to one: a claim. The other Service has no effect.
    names = ["front.claims.svc"]
    await until(
        lambda: guest.ask("claims", "claimed"),
        lambda found: found["identities"] and found["identities"][0]["dns_names"] == names,
        60,
    )
    # Without service_dns_names in the rule, none: names come from policy alone.
    words = ["create", "service", "clusterip", "-n", "shop", "front", "--tcp=8443"]
    await kubectl(*words)
    await guest.start({**KEPT, "metadata": {**KEPT["metadata"], "labels": {"app": "front"}}})
    (identity,) = (await guest.ask("shop", "kept"))["identities"]
    assert identity["dns_names"] == ["orders.shop.svc"]
    words = ["get", "default", "--socket", SOCKET, "--output", "json"]
    shown = await kubectl("exec", "-n", "shop", "kept", "--", "sds", *words)
    assert json.loads(shown)["secrets"][0]["dns_names"] == ["orders.shop.svc"]


async def test_a_shell_in_the_measured_pod_reads_its_key(guest: GuestCluster) -> None:
    """Not protected by the agent: the runtime tells of no exec, and no probe or hook.

    docs/threat-model.md says so; the component that refuses them is between kubelet and runtime.
    """
    await guest.start(KEPT)
    words = ["sds", "get", "default", "--socket", SOCKET, "--show-private-key"]
    assert "PRIVATE KEY" in await kubectl("exec", "-n", "shop", "kept", "--", *words)
    steal = f"{shlex.join(words)} > /dev/shm/%s || true"
    probe = {
        "exec": {"command": ["sh", "-c", steal % "probe"]},
        "periodSeconds": 5,
        "timeoutSeconds": 30,
    }
    hook = {"exec": {"command": ["sh", "-c", steal % "hook"]}}
    inside = container(livenessProbe=probe, lifecycle={"postStart": hook})
    await guest.start(pod("probed", "shop", "orders", inside))
    assert await guest.identity("shop", "probed") == "spiffe://example.org/ns/shop/sa/orders"

    async def written() -> str:
        command = ["sh", "-c", "cat /dev/shm/probe /dev/shm/hook"]
        return (await attempt("exec", "-n", "shop", "probed", "--", *command))[1]

    await until(written, lambda found: found.count("BEGIN PRIVATE KEY") >= 1, 60)


# --- the policy ---------------------------------------------------------------------------------


async def test_a_policy_that_is_edited_or_rolled_back_while_parties_run(
    guest: GuestCluster, image: str
) -> None:
    third = await guest.put_document(with_rules(guest, 3, image))
    await guest.in_force(3)
    edited = third.replace(b'"payload":"', b'"payload":"QQ', 1)
    second = bytes(sign(with_rules(guest, 2, image), guest.signer))
    stranger = bytes(sign(with_rules(guest, 4, image), Signatory("mallory")))
    for signed, reason in (
        (edited, "policy_"),
        (second, "policy_epoch_lower"),
        (stranger, "policy_unsigned"),
    ):
        await guest.put_policy(signed)
        await guest.said(reason)
        assert (await guest.status())["policy"]["epoch"] == 3
    await guest.put_policy(third)


async def test_a_policy_that_is_rolled_back_while_everybody_restarts(
    guest: GuestCluster, image: str
) -> None:
    """Accepted until its not_after; a min_epoch that etcd cannot change refuses it."""
    await guest.put_document(with_rules(guest, 6, image))
    await guest.in_force(6)
    await guest.put_document(with_rules(guest, 5, image))
    await guest.said("policy_epoch_lower", "epoch 5")
    await restart_everything()
    await guest.in_force(5)

    for name in ("agent", "issuer", "root"):
        guest.settings[name]["policy"]["min_epoch"] = 6
    guest.write()
    await kubectl("apply", "-k", str(guest.kustomization))
    await guest.said("policy_epoch_lower", "epoch 5", "6")
    await guest.put_document(with_rules(guest, 7, image))
    await guest.in_force(7)
    await rolled_out(SYSTEM, *EVERYTHING)


async def restart_everything() -> None:
    await kubectl("rollout", "restart", "-n", SYSTEM, *EVERYTHING)
    await rolled_out(SYSTEM, *EVERYTHING)


async def test_an_authorization_policy_that_somebody_deletes(
    guest: GuestCluster, image: str, tmp_path: Path
) -> None:
    """The signed policy decides, and Envoy has it from the agent: etcd has no object to delete."""
    try:
        await guest.apply_one(istio_objects.definitions())
        for plural in istio_objects.KINDS:
            crd = f"crd/{plural}.{istio_objects.GROUP}"
            await kubectl("wait", crd, "--for=condition=Established", "--timeout=60s")
        await guest.start(KEPT)
        words = ["--socket", SOCKET, "--role", "server", "--inbound", "0.0.0.0:8443"]
        made = CliRunner().invoke(cli.main, ["bootstrap", *words, "--validation", "inbound"])
        assert made.exit_code == 0, made.output
        envoy = container(image=ENVOY, command=[], args=["--config-yaml", made.stdout])
        # The rule on the image names it so; import reads the account.
        await kubectl("create", "serviceaccount", "-n", "claims", "vault")
        guarded = pod("guarded", "claims", "vault", envoy, labels={"app": "guarded"})
        await guest.start(guarded)
        principal = "example.org/ns/shop/sa/orders"
        mesh = istio_objects.objects("claims", app="guarded", principal=principal)
        await guest.apply_one(mesh)

        # From Istio's objects to the signed policy, as docs/how-to/migrate-from-istio.md says.
        kinds = ",".join([f"{each}.{istio_objects.GROUP}" for each in istio_objects.KINDS])
        there = tmp_path / "mesh.yaml"
        there.write_text(await kubectl("get", f"{kinds},pods", "-n", "claims", "-o", "yaml"))
        words = [
            str(there),
            "--trust-domain",
            "example.org",
            "--out",
            str(tmp_path / "policy.yaml"),
        ]
        imported = CliRunner().invoke(cli.main, ["policy", "import", "istio", *words])
        assert imported.exit_code == 0, imported.output
        allow = yaml.safe_load((tmp_path / "policy.yaml").read_text())["allow"]
        await guest.put_document(with_rules(guest, 8, image, allow=allow))
        await guest.in_force(8)

        path = "jsonpath={.status.podIP}"
        host = await kubectl("get", "pod", "-n", "claims", "guarded", "-o", path)
        words = ["exec", "-n", "shop", "kept", "--", "python3", "-c", istio_objects.ASK]

        async def answers() -> dict[str, Any]:
            _, out, error = await attempt(*words, SOCKET, host)
            return dict(json.loads(out)) if out else {"error": error}

        before, _ = await until(answers, lambda found: found.get("allowed") == 200, 90)
        assert (before["another path"], before["another method"]) == (403, 403)
        assert (before["no certificate"], before["no TLS"]) == ("refused", "refused")

        for key in istio_objects.keys("claims"):
            assert (await etcd("deleterange", key=key))["deleted"] == "1"
        left = await kubectl("get", kinds, "-n", "claims", "-o", "name")
        assert not left.strip()
        # A newer epoch reached the agent after that, and its Envoy still enforces the same.
        await guest.put_document(with_rules(guest, 9, image, allow=allow))
        await guest.in_force(9)
        assert await answers() == before
    finally:
        for plural in istio_objects.KINDS:
            await attempt("delete", "crd", f"{plural}.{istio_objects.GROUP}", "--ignore-not-found")


def without_policy(settings: dict[str, Any]) -> dict[str, Any]:
    """An adversary's agent.yaml: no policy, and everybody in ``shop`` is ``orders``."""
    rule = {
        "name": "everybody-is-orders",
        "match": {"k8s:ns": "shop"},
        "spiffe_id": "spiffe://example.org/ns/shop/sa/orders",
    }
    kept = {key: value for key, value in settings.items() if key != "policy"}
    return {**kept, "workloads": [rule]}


async def test_an_agent_yaml_that_somebody_replaces(guest: GuestCluster, image: str) -> None:
    """A ConfigMap takes effect at a restart; an authority out of etcd's reach refuses the agent."""
    sound = guest.settings["agent"]
    guest.settings["agent"] = without_policy(guest.settings["agent"])
    try:
        await guest.apply()
        await guest.start(imposter("shop"))
        # The agent believes its file; the authority has a policy, and signs for nobody without.
        assert await guest.identity("shop", "imposter") == "spiffe://example.org/ns/shop/sa/orders"
        line = await guest.said("policy_behind")
        print(json.dumps(line))
        words = ["sds", "get", "default", "--socket", SOCKET, "--show-private-key"]
        _, key, _ = await attempt("exec", "-n", "shop", "imposter", "--", *words)
        assert "PRIVATE KEY" not in key
    finally:
        guest.settings["agent"] = sound
        await guest.apply()


async def test_configurations_of_the_guest_image_that_no_configmap_changes(
    guest: GuestCluster,
) -> None:
    """deploy/components/measured-configuration: what etcd says of agent.yaml has no effect."""
    if not NODE:
        pytest.skip("SDS_NODE_SHELL names no command that reaches the node")
    await guest.measure(NODE)
    try:
        await guest.apply()
        # Whoever writes to etcd puts a ConfigMap there again, and restarts the agent.
        evil = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "attested-sds-agent-config", "namespace": SYSTEM},
            "data": {"agent.yaml": yaml.safe_dump(without_policy(guest.settings["agent"]))},
        }
        await guest.apply_one(evil)
        await kubectl("rollout", "restart", "-n", SYSTEM, AGENT)
        await rolled_out(SYSTEM, AGENT)
        await guest.start(imposter("shop"))
        await refused(guest)
        await guest.start(KEPT)
        assert await guest.identity("shop", "kept") == "spiffe://example.org/ns/shop/sa/orders"
        assert (await guest.status())["policy"]["epoch"]
    finally:
        guest.components, guest.patches = ("cri",), ()
        await guest.apply()
