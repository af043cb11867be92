"""``sds ca`` as a process, with simulated SEV-SNP machines passed by descriptors."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sds import errors
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.simulated import SimulatedMachine, SimulatedRoot
from sds.attestation.snp.verifier import SnpVerifier
from sds.authority.attested import AttestedAuthority, AuthoritySettings
from sds.authority.channel import VerifiedTls
from sds.clock import SystemClock
from sds.exchange.item import IssuedChain
from sds.pki import certificate_pem, verify_svid_chain
from tests.support import need
from tests.support.authority import wish
from tests.support.machines import crl
from tests.support.node import chips
from tests.support.policies import Signatory, document, sign
from tests.support.process import Process, output, running, sds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.e2e

NODE = b"node".ljust(48, b"\0")
AUTHORITY = b"authority".ljust(48, b"\0")


@dataclass
class Site:
    """A directory with the files of one or more authorities."""

    path: Path

    def __post_init__(self) -> None:
        self.ark.write_bytes(certificate_pem([chips().ark_der]))

    @property
    def ark(self) -> Path:
        return self.path / "ark.pem"

    def config(self, name: str, **changes: Any) -> Path:
        settings: dict[str, Any] = {
            "trust_domain": "example.org",
            "listen": "127.0.0.1:0",
            "verification": {"trusted_roots": [str(self.ark)]},
            "identities": [
                {
                    "measurement": NODE.hex(),
                    "spiffe_ids": ["spiffe://example.org/ns/**"],
                    "dns_names": ["**.test"],
                },
                {"measurement": AUTHORITY.hex(), "signing": {"path_length": 0}},
            ],
        } | changes
        path = self.path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    @contextlib.asynccontextmanager
    async def authority(
        self,
        name: str = "ca",
        *,
        machine: bool = True,
        prefix: Sequence[str] = (),
        **changes: Any,
    ) -> AsyncIterator[Process]:
        """A running authority; ``prefix``: what runs it."""
        descriptors = [chips().machine(measurement=AUTHORITY).send()] if machine else []
        if machine:
            changes["attestation"] = {"kind": "simulated", "descriptor": descriptors[0]}
        try:
            async with running(
                [*prefix, *sds("ca", "--config", self.config(name, **changes))],
                name=name,
                pass_fds=descriptors,
            ) as process:
                yield process
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def port(process: Process) -> int:
    return int((await process.line(r"^READY 127\.0\.0\.1:(\d+)$"))[1])


@contextlib.asynccontextmanager
async def client(
    port: int,
    *,
    machine: SimulatedMachine | None = None,
    measurement: bytes = AUTHORITY,
    connect_seconds: float = 5,
) -> AsyncIterator[AttestedAuthority]:
    values = ReferenceValues.model_validate({"measurements": [measurement.hex()]})
    authority = AttestedAuthority(
        AuthoritySettings(addresses=(f"127.0.0.1:{port}",), connect_seconds=connect_seconds),
        attester=machine or chips().machine(measurement=NODE),
        verifier=SnpVerifier(values=values, trusted_roots=[chips().ark_der]),
        clock=SystemClock(),
    )
    try:
        yield authority
    finally:
        await authority.aclose()


async def issue_one(authority: AttestedAuthority) -> tuple[IssuedChain, tuple[bytes, ...]]:
    key, item = wish()
    issuance = await authority.issue([item])
    (outcome,) = issuance.outcomes
    assert isinstance(outcome, IssuedChain), outcome
    verify_svid_chain(
        outcome.chain,
        roots=issuance.roots,
        identity=item.identity,
        public_key=key.public_key(),
        now=SystemClock().now().wall,
    )
    return outcome, issuance.roots


async def test_certificates_under_simulated_evidence_and_a_clean_end(site: Site) -> None:
    async with site.authority() as process:
        async with client(await port(process)) as authority:
            await issue_one(authority)
            # An open stream does not hold the end up.
            assert await process.terminate(seconds=4) == 0
        assert "SIMULATED" in process.text
        assert "certificate issued" in process.text
        assert "spiffe_id=spiffe://example.org/ns/a/sa/web" in process.text


async def test_an_authority_serves_though_its_stdout_is_full(site: Site) -> None:
    async with site.authority(prefix=["sh", "-c", 'exec "$@" >/dev/full', "sh"]) as process:
        await process.line("the authority is ready")
        assert await process.terminate() == 0
    assert "cannot be written" not in process.text


async def test_a_simulated_root_counts_only_where_it_is_named(site: Site) -> None:
    async with site.authority(verification={}) as process:
        async with client(await port(process)) as authority:
            with pytest.raises(errors.AuthorityRefusedError) as raised:
                await issue_one(authority)
        await process.line(f"reason={raised.value.wire_reason}")


async def test_another_chip_another_measurement_and_another_authority(site: Site) -> None:
    stranger = SimulatedRoot.create().machine(measurement=NODE)
    other_code = chips().machine(measurement=b"other".ljust(48, b"\0"))
    async with site.authority() as process:
        number = await port(process)
        async with client(number, machine=stranger) as authority:
            with pytest.raises(errors.AuthorityRefusedError):
                await issue_one(authority)
        async with client(number, machine=other_code) as authority:
            (outcome,) = (await authority.issue([wish()[1]])).outcomes
            assert isinstance(outcome, errors.AuthorityRefusedError)
            assert outcome.wire_reason == "measurement_not_allowed"
        async with client(number, measurement=NODE) as authority:
            with pytest.raises(errors.EvidenceError):
                await issue_one(authority)


async def test_hangup_reads_revocation_lists_again_and_ends_nothing(site: Site) -> None:
    """Without a policy too: SIGHUP is not a reason to end."""
    now = SystemClock().now().wall
    path = site.path / "amd.crl"
    path.write_bytes(crl(chips(), now=now))
    verification = {"trusted_roots": [str(site.ark)], "revocation_lists": [str(path)]}
    async with site.authority(verification=verification) as process:
        async with client(await port(process)) as authority:
            await issue_one(authority)
            process.signal(signal.SIGHUP)
            await issue_one(authority)
            path.write_bytes(crl(chips(), 0x10001, now=now, number=2))
            process.signal(signal.SIGHUP)
            await process.line("revocation lists and collateral were read again")
            with pytest.raises(errors.AuthorityError) as refused_:
                await issue_one(authority)
            assert "certificate_revoked" in str(refused_.value)
            path.write_bytes(b"damaged")
            process.signal(signal.SIGHUP)
            await process.line(r"cannot be used.*amd\.crl")
        assert await process.terminate(seconds=4) == 0
    async with site.authority(verification=verification) as process:
        assert await process.wait() == 2
        assert "amd.crl" in process.text


async def test_an_authority_below_an_authority(site: Site) -> None:
    async with site.authority("root") as root:
        signer = {
            "kind": "upstream",
            "authority": {"addresses": [f"127.0.0.1:{await port(root)}"]},
            "verification": {"trusted_roots": [str(site.ark)]},
        }
        async with site.authority("below", signer=signer) as below:
            async with client(await port(below)) as authority:
                outcome, roots = await issue_one(authority)
            assert (len(outcome.chain), len(roots)) == (2, 1)
            assert await root.kill() == -signal.SIGKILL
            async with client(await port(below)) as authority:
                await issue_one(authority)


async def test_a_signed_policy_at_both_authorities(site: Site) -> None:
    alice = Signatory("alice")
    now = datetime.now(UTC)
    policy = document(
        epoch=5,
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=1),
        nodes=[
            {"name": "authorities", "measurements": [AUTHORITY.hex()], "authority": {}},
        ],
    )
    (site.path / "policy.json").write_bytes(sign(policy, alice))
    (site.path / "alice.pub").write_text(alice.public.pem)
    files = {"file": str(site.path / "policy.json"), "keys": [str(site.path / "alice.pub")]}
    async with site.authority("root", policy=files, identities=[]) as root:
        signer = {
            "kind": "upstream",
            "authority": {"addresses": [f"127.0.0.1:{await port(root)}"]},
            "verification": {"trusted_roots": [str(site.ark)]},
        }
        async with site.authority("below", signer=signer, policy=files, identities=[]) as below:
            assert await port(below)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(
        [need.tool("openssl"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_an_operator_signs_the_authority(site: Site) -> None:
    root, key = site.path / "root.pem", site.path / "root.key"
    csr, chain = site.path / "ca.csr", site.path / "chain.pem"
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes"),
        *("-keyout", key, "-out", root, "-subj", "/CN=Offline root", "-days", "30"),
    )
    signer = {
        "kind": "operator",
        "csr_file": str(csr),
        "chain_file": str(chain),
        "roots_file": str(root),
    }
    async with site.authority(signer=signer) as process:
        await process.line("waiting for an operator")
        # A chain for another key is said and passed over.
        chain.write_bytes(site.ark.read_bytes())
        await process.line("the operator's chain cannot be used")
        signed = site.path / "signed.pem"
        _openssl(
            *("x509", "-req", "-in", csr, "-CA", root, "-CAkey", key, "-out", signed),
            *("-days", "7", "-copy_extensions", "copyall"),
        )
        signed.replace(chain)
        async with client(await port(process)) as authority:
            outcome, roots = await issue_one(authority)
    assert len(outcome.chain) == 2
    assert certificate_pem(roots) == root.read_bytes()
    assert not any(b"PRIVATE" in path.read_bytes() for path in (csr, chain))


async def test_plain_tls_for_agents_that_trust_a_root(site: Site) -> None:
    certificate = site.path / "tls.pem"
    tls = {"server_names": ["ca.test"], "certificate_out": str(certificate)}
    async with site.authority(tls=tls, machine=False) as process:
        number = await port(process)
        await process.line("gives no evidence")
        settings = AuthoritySettings(
            addresses=(f"127.0.0.1:{number}",),
            tls=VerifiedTls(roots=certificate.read_bytes(), server_name="ca.test"),
        )
        authority = AttestedAuthority(
            settings,
            attester=chips().machine(measurement=NODE),
            verifier=None,
            clock=SystemClock(),
        )
        await issue_one(authority)
        await authority.aclose()


async def test_what_is_wrong_with_a_configuration_is_said_before_anything_starts(
    site: Site,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for path, words in (
            (site.path / "missing.yaml", "missing.yaml"),
            (site.config("taken", listen=address), address),
            (site.config("chip", attestation={"kind": "simulated", "descriptor": 99}), "99"),
        ):
            status, stdout, stderr = await output(sds("ca", "--config", path))
            assert (status, stdout) == (2, ""), stderr
            assert words in stderr.splitlines()[-1]
            assert "Traceback" not in stderr
