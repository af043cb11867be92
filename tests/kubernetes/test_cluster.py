"""The deployment on a real cluster: `make test-kubernetes`, with any KUBECONFIG.

Not part of `make test`. It applies deploy/overlays/plain and deploy/sample, sends traffic with a
handshake a request all the time, and counts what fails while agents and authorities restart and
Services come and go. Set:

* ``SDS_IMAGE``, ``SDS_ENVOY_IMAGE``: images that the cluster has or can pull (the first one with
  Python 3 as ``python3``, as the Dockerfile makes it).
* ``SDS_KUBECTL``: the command, where it is not ``kubectl``.
* ``SDS_CLUSTER_DNS=none``: the cluster has no DNS; fixed addresses and /etc/hosts are used.
* ``SDS_RESTART_KUBELET``: a command that kills the kubelet and returns when it runs again.
* ``SDS_CROWD``: pods that start at once (100; the kubelet admits 110 unless ``maxPods`` says more).
* ``SDS_CROWD_ROUNDS``: crowds one after the other, such as ``csi,hostpath,hostpath,csi``; together
  they have both kinds of volumes.
* ``SDS_CROWD_AHEAD=yes``: the agent mints certificates for the crowd before its pods ask.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import time
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sds.pki import private_key_pem
from tests.support import need
from tests.support.certificates import Wish, ca_wish, common_name, self_signed
from tests.support.cluster import (
    ADDRESSES,
    ENVOY,
    IMAGE,
    NO_DNS,
    attempt,
    check_unused,
    delete,
    hosts,
    image,
    kubectl,
    kustomization,
    patch,
    rolled_out,
    state,
    until,
    without_dns,
)
from tests.support.process import output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.timeout(1200)

TRAFFIC = """
import http.client, json, time
ok = failed = 0; error = ''; seen = {}; said = time.monotonic()
while True:
    try:
        connection = http.client.HTTPConnection('127.0.0.1', 8081, timeout=5)
        connection.request('GET', '/')
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        if answer.status == 200:
            ok += 1; seen = {k: answer.headers.get(k) for k in ('x-peer', 'x-local')}
        else:
            failed += 1; error = f'{answer.status} {body[:300]}'
    except OSError as problem:
        failed += 1; error = repr(problem)
    if time.monotonic() - said > 0.25:
        said = time.monotonic()
        print(json.dumps({'ok': ok, 'failed': failed, 'error': error, **seen}), flush=True)
    time.sleep(0.02)
"""


async def traffic() -> dict[str, Any]:
    """The newest count of the traffic."""
    line = await kubectl("logs", "-n", "shop", "deploy/billing", "-c", "traffic", "--tail=1")
    return json.loads(line) if line else {}


def tls_keys(folder: Path) -> None:
    """Keys of the authorities' TLS, as an operator makes them (docs/kubernetes.md, step 2)."""
    now = datetime.now(UTC)
    begin, end = now - timedelta(minutes=5), now + timedelta(days=1)
    wish = ca_wish("authorities")
    ca = self_signed(
        Wish(
            subject=wish.subject,
            constraints=wish.constraints,
            usage=wish.usage,
            extended=(),
            not_before=begin,
            not_after=end,
        )
    )
    root = folder / "deploy/overlays/plain/config/authority-root.pem"
    root.write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    for name in ("root", "issuer"):
        host = f"attested-sds-{name}.attested-sds.svc"
        leaf = ca.issue(
            Wish(
                subject=common_name(name),
                names=(x509.DNSName(host),),
                not_before=begin,
                not_after=end,
            )
        )
        (folder / f"{name}.crt").write_bytes(leaf.certificate.public_bytes(Encoding.PEM))
        (folder / f"{name}.key").write_bytes(private_key_pem(leaf.key))


def system(folder: Path, volumes: str) -> Path:
    """A kustomization of the authorities and the agent for this cluster."""
    agent = folder / "deploy/overlays/plain/config/agent.yaml"
    settings = agent.read_text() + "    lifetime: 30s\n"  # so that rotation is seen
    if volumes == "csi":
        assert "attestors: [kubernetes]\n" in settings
        settings = settings.replace(
            "attestors: [kubernetes]\n", "attestors: [kubernetes]\n  csi: {}\n"
        )
    agent.write_text(settings)
    secrets = [
        {
            "name": f"attested-sds-{name}-tls",
            "namespace": "attested-sds",
            "type": "kubernetes.io/tls",
            "files": [f"tls.crt={name}.crt", f"tls.key={name}.key"],
        }
        for name in ("root", "issuer")
    ]
    return kustomization(
        folder,
        resources=["deploy/overlays/plain"],
        components=["deploy/components/csi"] if volumes == "csi" else [],
        images=[image("attested-sds", IMAGE)],
        patches=without_dns(),
        secretGenerator=secrets,
        generatorOptions={"disableNameSuffixHash": True},
    )


def sample(folder: Path, volumes: str) -> Path:
    """The two services, and beside billing what sends traffic and counts."""
    container = {
        "name": "traffic",
        "image": IMAGE,
        "command": ["python3", "-c", TRAFFIC],
        "securityContext": {
            "runAsUser": 65532,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    patches = [
        patch("Deployment", "billing", ("/spec/template/spec/containers/-", container)),
    ]
    if NO_DNS:
        patches += [
            patch("Deployment", "billing", hosts(orders="orders.shop.svc")),
            patch("Service", "orders", ("/spec/clusterIP", ADDRESSES["orders"])),
        ]
    return kustomization(
        folder / "sample",
        resources=["../deploy/sample-csi" if volumes == "csi" else "../deploy/sample"],
        images=[image("envoyproxy/envoy", ENVOY)],
        patches=patches,
    )


@pytest.fixture(params=["hostpath", "csi"])
async def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    volumes: str = request.param
    await check_unused("attested-sds", "shop")
    shutil.copytree(need.ROOT / "deploy", tmp_path / "deploy")
    tls_keys(tmp_path)
    everything, services = system(tmp_path, volumes), sample(tmp_path, volumes)
    try:
        await kubectl("apply", "-k", str(everything))
        await rolled_out(
            "attested-sds",
            "sts/attested-sds-root",
            "deploy/attested-sds-issuer",
            "ds/attested-sds-agent",
        )
        await kubectl("apply", "-k", str(services))
        await rolled_out("shop", "deploy/orders", "deploy/billing")
        yield volumes
    finally:
        await delete(services, everything)


async def no_failures(since: dict[str, Any], what: str) -> dict[str, Any]:
    """Traffic went on, and no request failed since."""
    now, _ = await until(traffic, lambda found: found.get("ok", 0) > since["ok"] + 50)
    failed = now["failed"] - since["failed"]
    print(f"{what}: {now['ok'] - since['ok']} requests, {failed} failed")
    assert failed == 0, f"{what}: {failed} failed: {now['error']}\n{await state()}"
    return dict(now)


async def no_token_for_a_pod_that_does_not_ask() -> None:
    """Whoever has an agent's rights could else be every node: a token names its pod's node."""
    account = "attested-sds-agent"
    path = "jsonpath={.items[0].metadata.name} {.items[0].metadata.uid}"
    label = f"app.kubernetes.io/name={account}"
    pod, uid = (await kubectl("get", "pod", "-n", "attested-sds", "-l", label, "-o", path)).split()
    words = ["create", "token", "-n", "attested-sds", account, "--bound-object-kind=Pod"]
    words += [f"--bound-object-name={pod}", f"--bound-object-uid={uid}"]
    status, _, said = await attempt(*words, f"--as=system:serviceaccount:attested-sds:{account}")
    assert status != 0
    assert "a pod may ask only for tokens that are bound to itself" in said


async def test_two_services_live_from_the_daemonset(cluster: str) -> None:
    # Envoys of uid 101 without capabilities, by a read-only mount of the socket's directory; with
    # CSI volumes in a namespace that enforces Pod Security "restricted".
    level = await kubectl("get", "namespace", "shop", "-o", "jsonpath={.metadata.labels}")
    assert ('enforce":"restricted"' in level) == (cluster == "csi")
    seen, _ = await until(traffic, lambda found: found.get("ok", 0) > 20)
    assert seen["x-peer"] == "spiffe://example.org/ns/shop/sa/billing"
    assert "orders.shop.svc" in seen["x-local"].split(",")
    await no_token_for_a_pod_that_does_not_ask()

    seen = dict(await traffic())
    agents = "app.kubernetes.io/name=attested-sds-agent"
    await kubectl("delete", "pod", "-n", "attested-sds", "-l", agents)
    await rolled_out("attested-sds", "ds/attested-sds-agent")
    seen = await no_failures(seen, "the agent's pod was deleted")
    await asyncio.sleep(35)  # longer than a certificate lives: what is in use is the new agent's
    seen = await no_failures(seen, "a whole lifetime after that")

    await kubectl("expose", "deploy/orders", "-n", "shop", "--name=orders-alt", "--port=8443")
    name = "orders-alt.shop.svc"
    _, took = await until(traffic, lambda found: name in found["x-local"].split(","), 20)
    print(f"a Service was added: its name is in the certificate after {took:.1f} s")
    await kubectl("delete", "service", "-n", "shop", "orders-alt", "--wait=false")
    _, took = await until(traffic, lambda found: name not in found["x-local"].split(","), 20)
    print(f"a Service was removed: its name is gone after {took:.1f} s")
    seen = await no_failures(seen, "a Service came and went")

    await kubectl("rollout", "restart", "-n", "attested-sds", "deploy/attested-sds-issuer")
    await rolled_out("attested-sds", "deploy/attested-sds-issuer")
    seen = await no_failures(seen, "the issuing replicas restarted")
    await kubectl("rollout", "restart", "-n", "attested-sds", "sts/attested-sds-root")
    await rolled_out("attested-sds", "sts/attested-sds-root")
    await asyncio.sleep(35)
    seen = await no_failures(seen, "the root restarted, and a lifetime passed")

    await kubectl("rollout", "restart", "-n", "shop", "deploy/orders")
    await rolled_out("shop", "deploy/orders")
    now, _ = await until(traffic, lambda found: found["ok"] > seen["ok"] + 50)
    assert now["x-peer"] == "spiffe://example.org/ns/shop/sa/billing"


async def test_pods_crash_are_forced_out_and_outlive_the_kubelet(cluster: str) -> None:
    """Volumes follow their pods, whatever ends them; ``SDS_RESTART_KUBELET`` ends the kubelet."""
    seen, _ = await until(traffic, lambda found: found.get("ok", 0) > 20)
    scale = ["scale", "-n", "shop", "deploy/orders"]
    for replicas in ("8", "1", "8"):
        await kubectl(*scale, f"--replicas={replicas}")
        await rolled_out("shop", "deploy/orders")
    await kubectl("delete", "pod", "-n", "shop", "-l", "app=orders", "--force", "--grace-period=0")
    await rolled_out("shop", "deploy/orders")
    await kubectl(*scale, "--replicas=1")
    await rolled_out("shop", "deploy/orders")
    # Forced pods take running requests with them; from here on nothing may fail.
    seen, _ = await until(traffic, lambda found: found["ok"] > seen["ok"] + 50)
    if restart := os.environ.get("SDS_RESTART_KUBELET"):
        status, _, error = await output(shlex.split(restart))
        assert status == 0, error
        seen = await no_failures(seen, "the kubelet restarted")
        await asyncio.sleep(35)  # longer than a certificate lives: streams go on
        seen = await no_failures(seen, "a whole lifetime after that")
        # New connections, by what the kubelet keeps for pods that ran all the while.
        agents = "app.kubernetes.io/name=attested-sds-agent"
        await kubectl("delete", "pod", "-n", "attested-sds", "-l", agents)
        await rolled_out("attested-sds", "ds/attested-sds-agent")
        await asyncio.sleep(35)
        seen = await no_failures(seen, "the agent restarted after the kubelet; a lifetime passed")
        await kubectl("rollout", "restart", "-n", "shop", "deploy/billing")
        await rolled_out("shop", "deploy/billing")
        await until(traffic, lambda found: found.get("ok", 0) > 50)
    # The kubelet also says FailedMount of ConfigMaps, of pods that are forced out meanwhile.
    path = "jsonpath={range .items[*]}{.reason} {.message}{'\\n'}{end}"
    events = await kubectl("get", "events", "-n", "shop", "-o", path)
    failed = [line for line in events.splitlines() if line.startswith("FailedMount ")]
    assert not [line for line in failed if 'volume "attested-sds"' in line]


FIRST = """
import json, os, socket, struct, sys, time

begun = time.clock_gettime(time.CLOCK_BOOTTIME)

def text(field, value):
    return bytes([field << 3 | 2, len(value)]) + value

def frame(kind, flags, stream, body):
    head = struct.pack('>I', len(body))[1:] + bytes([kind, flags])
    return head + struct.pack('>I', stream) + body

def header(name, value):
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value

ticks = int(open('/proc/self/stat').read().rsplit(')', 1)[1].split()[19])
made = ticks / os.sysconf('SC_CLK_TCK')
kind = b'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret'
asked = text(2, text(1, b'crowd')) + text(3, b'default') + text(4, kind)
path = b'/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets'
fields = [(b':method', b'POST'), (b':scheme', b'http'), (b':path', path),
          (b':authority', b'localhost'), (b'content-type', b'application/grpc'),
          (b'te', b'trailers')]
hello = b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + frame(4, 0, 0, b'')
hello += frame(1, 4, 1, b''.join(header(*each) for each in fields))
hello += frame(0, 0, 1, b'\\0' + struct.pack('>I', len(asked)) + asked)
while True:
    client, got = socket.socket(socket.AF_UNIX), b''
    try:
        client.connect('/run/attested-sds/node/sds.sock')
        client.sendall(hello)
        while b'BEGIN CERTIFICATE' not in got:
            more = client.recv(65536)
            if not more:
                raise OSError(got[-200:])
            got += more
        break
    except OSError:
        time.sleep(0.05)
now = time.clock_gettime(time.CLOCK_BOOTTIME)
seen = {'volumes': os.environ['VOLUMES'], 'runtime': begun - made, 'certificate': now - begun}
print(json.dumps(seen), flush=True)
time.sleep(86400)
"""
CROWD = int(os.environ.get("SDS_CROWD", "100"))
ROUNDS = os.environ.get("SDS_CROWD_ROUNDS", "hostpath+csi").split(",")
"""Crowds one after the other; half of the first one's pods have each kind of volume."""
ATTESTORS = "\n  attestors: [kubernetes]"
AHEAD = "\n  ahead: {identities: 512}" if os.environ.get("SDS_CROWD_AHEAD") == "yes" else ""


def crowd(number: int, kinds: Sequence[str], prefix: str) -> dict[str, Any]:
    """So many pods that measure their first certificate, with volumes of these kinds in turn.

    Each has an account of its own, with the prefix in its name, so that no crowd finds a
    certificate of an earlier one.
    """
    volumes: dict[str, dict[str, Any]] = {
        "hostpath": {"hostPath": {"path": "/run/attested-sds/node", "type": "Directory"}},
        "csi": {"csi": {"driver": "csi.attested-sds", "readOnly": True}},
    }
    mount = {"name": "attested-sds", "mountPath": "/run/attested-sds/node", "readOnly": True}
    items: list[dict[str, Any]] = []
    for each in range(number):
        kind = kinds[each % len(kinds)]
        name = f"{prefix}-{each}"
        named = {"name": name, "namespace": "shop", "labels": {"app": "crowd"}}
        container = {
            "name": "main",
            "image": IMAGE,
            "command": ["python3", "-S", "-c", FIRST],
            "env": [{"name": "VOLUMES", "value": kind}],
            "volumeMounts": [mount],
        }
        spec = {
            "serviceAccountName": name,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "attested-sds", **volumes[kind]}],
        }
        items.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": named})
        items.append({"apiVersion": "v1", "kind": "Pod", "metadata": named, "spec": spec})
    return {"apiVersion": "v1", "kind": "List", "items": items}


async def measured() -> list[dict[str, Any]]:
    """What each pod of the crowd that has its certificate says."""
    words = ["-l", "app=crowd", "--tail=1", f"--max-log-requests={CROWD}"]
    _, out, _ = await attempt("logs", "-n", "shop", *words)
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def described(seconds: Iterable[float]) -> str:
    """p50, p99 and the longest of these."""
    ordered = sorted(seconds)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"p50 {median(ordered):.2f} s, p99 {p99:.2f} s, longest {ordered[-1]:.2f} s"


@pytest.mark.timeout(1200 * len(ROUNDS))
async def test_a_crowd_of_pods_by_csi_is_served_like_one_by_hostpath(tmp_path: Path) -> None:
    """Both kinds come in one crowd: a second crowd finds a slower node, whichever kind it is.

    What counts begins with the program's first line. Before it, the runtime makes the process and
    what is around it, and that takes longer the more containers start.
    """
    await check_unused("attested-sds", "shop")
    shutil.copytree(need.ROOT / "deploy", tmp_path / "deploy")
    tls_keys(tmp_path)
    everything = system(tmp_path, "csi")
    agent = tmp_path / "deploy/overlays/plain/config/agent.yaml"
    text = agent.read_text().replace("    lifetime: 30s\n", "")
    assert text.count(ATTESTORS) == 1
    agent.write_text(text.replace(ATTESTORS, ATTESTORS + AHEAD))
    waited: dict[str, list[float]] = {}
    try:
        await kubectl("apply", "-k", str(everything))
        await rolled_out(
            "attested-sds",
            "sts/attested-sds-root",
            "deploy/attested-sds-issuer",
            "ds/attested-sds-agent",
        )
        await kubectl("create", "namespace", "shop")
        for number, kinds in enumerate(ROUNDS):
            manifest = tmp_path / "crowd.json"
            manifest.write_text(json.dumps(crowd(CROWD, kinds.split("+"), f"crowd{number}")))
            began = time.monotonic()
            await kubectl("apply", "-f", str(manifest), seconds=600)
            # Reading all logs again and again would take the processors from the crowd.
            ready = ["pod", "-l", "app=crowd", "--for=condition=Ready", "--timeout=900s"]
            await kubectl("wait", "-n", "shop", *ready, seconds=900)
            found, _ = await until(measured, lambda found: len(found) == CROWD)
            print(f"{kinds}: {CROWD} pods have certificates in {time.monotonic() - began:.0f} s")
            for kind in kinds.split("+"):
                mine = [each for each in found if each["volumes"] == kind]
                waited.setdefault(kind, []).extend(each["certificate"] for each in mine)
                print(
                    f"  {kind}: from the program's first line to its certificate "
                    f"{described(each['certificate'] for each in mine)}; before that, in the "
                    f"runtime, {described(each['runtime'] for each in mine)}"
                )
            await kubectl("delete", "-f", str(manifest), "--wait=true", seconds=900)
    finally:
        await attempt("delete", "namespace", "shop", "--ignore-not-found", "--wait=true")
        await delete(everything)
    assert median(waited["csi"]) < 3 * median(waited["hostpath"])
