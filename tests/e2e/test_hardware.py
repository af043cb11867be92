"""A TDX guest and an Azure confidential VM in one mesh: from the guest's interface to an Envoy.

Only the machines and the manufacturers are played: configfs-tsm by a file system, the vTPM by
swtpm, the metadata service, Intel's PCS and AMD's KDS by local servers. Agents, authority and
Envoys are the real ones.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, Outbound, SecretSource
from sds.pki import certificate_pem
from tests.support import machines
from tests.support.envoy import running_envoy
from tests.support.intel import FMSPC, Intel
from tests.support.node import TRUST_DOMAIN, Node, chips, free_port, short_folder
from tests.support.paravisor import Host, paravisor
from tests.support.policy_mesh import server
from tests.support.publishers import Publishers
from tests.support.tsm_mount import mounted_reports

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

ANY_PORT = Endpoint(host="127.0.0.1", port=0)
MRTD = (b"m" * 48).hex()
PARAVISOR = b"paravisor".ljust(48, b"\0")
BOOTED = hashlib.sha256(bytes(32) + hashlib.sha256(b"boot loader").digest()).hexdigest()
"""PCR 4 after the played boot loader."""


def published(intel: Intel, azure: Any, folder: Path, now: datetime) -> Publishers:
    """What Intel and AMD have for these two machines."""
    found = Publishers.of_folder(intel.collateral(folder), FMSPC.hex())
    found.lists["genoa"] = machines.crl(chips(), now=now)
    found.vceks = {azure.chip_id.hex(): azure.certificates[0]}
    return found


def of_server(socket: Path) -> dict[str, Any]:
    return to_dict(
        make_bootstrap(
            node="server",
            secrets=SecretSource(socket=socket),
            admin=ANY_PORT,
            inbound=[Inbound(listen=ANY_PORT)],
        )
    )


def of_client(socket: Path, to: Endpoint) -> dict[str, Any]:
    return to_dict(
        make_bootstrap(
            node="client",
            secrets=SecretSource(socket=socket),
            admin=ANY_PORT,
            outbound=[Outbound(listen=ANY_PORT, upstreams={"*": to})],
        )
    )


async def test_a_tdx_guest_and_an_azure_vm_talk_by_mtls(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    intel, azure = Intel(now=now), chips().machine(measurement=PARAVISOR)
    publishers = published(intel, azure, tmp_path / "published", now)
    # After an update of the firmware the host has the certificate of another TCB: the right one
    # comes from AMD, through the authority.
    host = Host(chain=chips().machine(chip_id=azure.chip_id, tcb=b"\1" * 8).certificates)
    roots = {"intel": intel.root_der, "ark": chips().ark_der, "ask": azure.certificates[1]}
    for name, der in roots.items():
        (tmp_path / f"{name}.pem").write_bytes(certificate_pem([der]))
    with (
        short_folder() as folder,
        short_folder() as other,
        mounted_reports(tmp_path / "tsm") as reports,
        paravisor(azure.report) as vtpm,
    ):
        reports.told(platform=intel.platform())
        tdx = Node(folder, workloads=["tdx"])
        snp = Node(other, workloads=["azure"], port=tdx.port)
        async with publishers.running(), host.running():
            port = free_port()
            verification = {
                "trusted_roots": [str(tmp_path / "intel.pem"), str(tmp_path / "ark.pem")],
                "certificates": [str(tmp_path / "ask.pem")],
                "collateral": str(tmp_path / "collateral"),
                "fetch": {
                    "fmspcs": [FMSPC.hex()],
                    "authorities": ["platform"],
                    "products": ["genoa"],
                    "pcs": publishers.url,
                    "kds": publishers.url,
                },
                "reference_values": {
                    "others": {
                        "azure-snp-vtpm": {
                            "measurements": [PARAVISOR.hex()],
                            "pcrs": {"4": [BOOTED]},
                        }
                    },
                },
            }
            identities = [
                {"measurement": measured, "spiffe_ids": [f"spiffe://{TRUST_DOMAIN}/{name}"]}
                for name, measured in (("tdx", MRTD), ("azure", PARAVISOR.hex()))
            ]
            through_vtpm = {
                "kind": "azure-snp-vtpm",
                "tpm_device": str(vtpm),
                "metadata_server": host.url,
                "certificate_server": f"http://127.0.0.1:{port}",
            }
            async with tdx.authority(
                verification=verification,
                identities=identities,
                collateral={"listen": f"127.0.0.1:{port}"},
            ) as authority:
                await authority.line("collateral were read again")
                async with (
                    snp.agent(ready=False, attestation=through_vtpm) as asking,
                    tdx.agent(prefix=reports.guest(), attestation={"kind": "tdx"}),
                    server(of_server(tdx.socket("tdx")), tmp_path) as to,
                ):
                    await asking.line(r"\bready=true")
                    made = of_client(snp.socket("azure"), to.endpoint)
                    async with running_envoy(made, folder=tmp_path, name="client") as envoy:
                        await envoy.until_live()
                        at, entry = await envoy.address("outbound")
                        async with envoy.http.get(f"http://{at}:{entry}/") as response:
                            said = await response.text()
                            assert response.status == 200, said
        assert f"spiffe://{TRUST_DOMAIN}/azure" in said
        # Each file was asked for once, and the VCEK of this machine too.
        assert set(publishers.hits.values()) == {1}, publishers.hits
        assert f"/vcek/v1/Genoa/{azure.chip_id.hex()}" in publishers.hits
