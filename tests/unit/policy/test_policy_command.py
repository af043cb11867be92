"""``sds policy``: what people and other tools rely on."""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from sds import cli
from sds.policy.yaml_document import parse_source
from tests.support.policies import Signatory, document, yaml_bytes
from tests.support.published_schema import check_schema

if TYPE_CHECKING:
    from click.testing import Result

S = "spiffe://example.org"
AT = ("--at", "2026-06-01T00:00:00Z")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["policy", *map(str, arguments)])


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_keygen_leaves_no_half_of_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a public half that is there: another attempt would find a key already."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fchmod", full)
        assert "cannot be written" in run("keygen", "--out", tmp_path, "--name", "alice").output
    assert not list(tmp_path.iterdir())
    (tmp_path / "alice.pub").write_text("another's")
    assert "exists already" in run("keygen", "--out", tmp_path, "--name", "alice").output
    assert [one.name for one in tmp_path.iterdir()] == ["alice.pub"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("alice", "bob", "carol"):
        good("keygen", "--out", tmp_path, "--name", name)
    (tmp_path / "open.key").write_bytes((tmp_path / "alice.key").read_bytes())
    (tmp_path / "open.key").chmod(0o644)
    fields = document(
        4,
        allow=[{"from": f"{S}/a", "to": f"{S}/b"}, {"from": f"{S}/ops/*", "to": f"{S}/**"}],
        services={"b": f"{S}/b"},
        nodes=[
            {
                "name": "n",
                "measurements": ["ab" * 48],
                "grants": [{"spiffe_ids": f"{S}/a", "dns_names": ["a.example.org"]}],
            }
        ],
        workloads=[
            {
                "name": "a",
                "match": {"unix:uid": "1000", "unix:path": "/bin/a"},
                "spiffe_id": f"{S}/a",
            }
        ],
    )
    (tmp_path / "policy.yaml").write_bytes(b"# a comment\n" + yaml_bytes(fields))
    good(
        "sign", tmp_path / "policy.yaml", "--key", tmp_path / "alice.key", "--out", signed(tmp_path)
    )
    return tmp_path


def signed(folder: Path) -> Path:
    return folder / "signed.json"


def test_keygen_keeps_the_private_half_private_and_overwrites_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "deep"
    good("keygen", "--out", folder, "--name", "alice")
    private, public = folder / "alice.key", folder / "alice.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert b"PRIVATE KEY" in private.read_bytes()
    assert b"PRIVATE" not in public.read_bytes()
    again = run("keygen", "--out", folder, "--name", "alice")
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert run("keygen", "--out", folder, "--name", "../x").exit_code == 2


def test_sign_and_verify(folder: Path) -> None:
    text = good("verify", signed(folder), "--key", folder / "alice.pub", *AT)
    assert text.endswith("accepted\n")
    verdict = json.loads(
        good("verify", signed(folder), "--key", folder / "alice.pub", *AT, "--output", "json")
    )
    assert verdict["verdict"] == "accepted"
    assert verdict["reason"] is None
    assert verdict["policy"]["epoch"] == 4
    assert verdict["policy"]["signed_by"] == ["alice"]
    assert all(check["ok"] for check in verdict["checks"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--key", "bob.pub", *AT), "policy_unsigned"),
        (("--key", "alice.pub", "bob.pub", "--threshold", "2", *AT), "policy_below_threshold"),
        (("--key", "alice.pub", "--at", "2025-01-01T00:00:00Z"), "policy_not_yet_valid"),
        (("--key", "alice.pub", "--at", "2027-01-01T00:00:00+00:00"), "policy_expired"),
        (("--key", "alice.pub", "--min-epoch", "5", *AT), "policy_epoch_lower"),
        (("--key", "alice.pub", "--trust-domain", "b.org", *AT), "policy_trust_domain"),
    ],
)
def test_verify_refuses_with_the_reason(
    folder: Path, options: tuple[str, ...], reason: str
) -> None:
    arguments = [folder / one if one.endswith(".pub") else one for one in options]
    text = run("verify", signed(folder), *arguments)
    assert text.exit_code == 1
    assert f"refused: {reason}: " in text.stdout
    result = run("verify", signed(folder), *arguments, "--output", "json")
    assert result.exit_code == 1
    verdict = json.loads(result.stdout)
    assert (verdict["verdict"], verdict["reason"]) == ("refused", reason)
    assert not all(check["ok"] for check in verdict["checks"])


def test_verify_refuses_what_is_no_signed_policy(folder: Path) -> None:
    key = folder / "alice.pub"
    assert run("verify", folder / "policy.yaml", "--key", key).exit_code == 1
    (folder / "bad.json").write_bytes(signed(folder).read_bytes()[:-9])
    result = run("verify", folder / "bad.json", "--key", key)
    assert result.exit_code == 1
    assert "policy_malformed" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify",),
        ("verify", "signed.json"),
        ("verify", "missing.json", "--key", "alice.pub"),
        ("verify", "signed.json", "--key", "missing.pub"),
        ("verify", "signed.json", "--key", "alice.key"),
        ("verify", "signed.json", "--key", "policy.yaml"),
        ("verify", "signed.json", "--key", "alice.pub", "--threshold", "2"),
        ("verify", "signed.json", "--key", "alice.pub", "alice.pub"),
        ("verify", "signed.json", "--key", "alice.pub", "--at", "yesterday"),
        ("verify", "signed.json", "--key", "alice.pub", "--at", "2026-01-01T00:00:00"),
        ("sign", "policy.yaml", "--out", "x.json"),
        ("sign", "policy.yaml", "--key", "alice.pub", "--out", "x.json"),
        ("sign", "missing.yaml", "--key", "alice.key", "--out", "x.json"),
        ("sign", "policy.yaml", "--key", "alice.key", "--out", "missing/x.json"),
        ("sign", "policy.yaml", "--signer-command", "cat", "--out", "x.json"),
        ("sign", "policy.yaml", "--key", "open.key", "--out", "x.json"),
        ("sign", "policy.yaml", "--key", "alice.key", "--out=~/x.json"),
        ("keygen", "--out=~/keys", "--name", "dave"),
        ("explain", "signed.json"),
        ("explain", "signed.json", "--from", f"{S}/a"),
        ("explain", "signed.json", "--from", "a", "--to", "b"),
        ("explain", "signed.json", "--from", f"{S}/a", "--to", "spiffe://B"),
        ("explain", "signed.json", "--caller", "k8s:nonsense=1"),
        ("explain", "signed.json", "--caller", "unix:uid"),
        ("new", "--trust-domain", "A"),
        ("lint", "alice.pub"),
    ],
)
def test_usage_errors_exit_with_2(folder: Path, arguments: tuple[str, ...]) -> None:
    files = {path.name for path in folder.iterdir()} | {"missing.yaml", "x.json"}
    prepared = [
        folder / one if one in files or one.startswith("missing") else one for one in arguments
    ]
    result = run(*prepared)
    assert result.exit_code == 2, result.output
    assert result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "x.json").exists()


def test_a_signed_policy_goes_where_a_link_leads(folder: Path) -> None:
    """Before, a file took the place of the link, and what everybody reads kept the old policy."""
    (folder / "link.json").symlink_to("kept.json")
    for _ in range(2):
        good(
            "sign",
            folder / "policy.yaml",
            "--key",
            folder / "alice.key",
            "--out",
            folder / "link.json",
        )
        assert (folder / "link.json").is_symlink()
        assert (folder / "kept.json").read_bytes() == signed(folder).read_bytes()


def test_a_key_that_others_may_read_signs_nothing(folder: Path) -> None:
    for mode in (0o640, 0o604):
        (folder / "open.key").chmod(mode)
        result = run("sign", folder / "policy.yaml", "--key", folder / "open.key", "--out", "x")
        assert result.exit_code == 2
        assert f"others may read the private key {folder / 'open.key'}" in result.stderr
        assert "chmod 600" in result.stderr


def test_a_folder_of_files_as_editors_write_them(folder: Path) -> None:
    parts = folder / "parts"
    parts.mkdir()
    whole = yaml.safe_load((folder / "policy.yaml").read_text())
    allow = yaml.safe_dump({"allow": whole.pop("allow")})
    rest = yaml.safe_dump(whole, explicit_start=True)
    (parts / "1.yaml").write_bytes(rest.encode("utf-8-sig"))
    (parts / "2.yaml").write_bytes(allow.replace("\n", "\r\n").encode("utf-8-sig"))
    # Any bytes may be a file's name, and none ends the comment with it.
    Path(os.fsdecode(os.fsencode(parts) + b"/3\xff\nepoch: 7\n.yaml")).write_text("services: {}\n")
    good("sign", parts, "--key", folder / "alice.key", "--out", folder / "parts.json")
    assert good("diff", folder / "parts.json", folder / "policy.yaml") == (
        "nothing that is enforced changes\n"
    )


def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:  # root may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for command in (
        ("lint", folder),
        ("sign", folder, "--key", folder / "alice.key", "--out", "x"),
    ):
        result = run(*command)
        assert result.exit_code == 2
        assert "cannot be read: Permission denied" in result.stderr


def test_several_sign_one_after_the_other(folder: Path) -> None:
    good("sign", signed(folder), "--key", folder / "bob.key", "--out", folder / "two.json")
    both = ("--key", folder / "alice.pub", "--key", folder / "bob.pub", "--threshold", 2)
    good("verify", folder / "two.json", *both, *AT)
    good(
        "sign",
        folder / "policy.yaml",
        "--key",
        folder / "alice.key",
        folder / "bob.key",
        "--out",
        folder / "at-once.json",
    )
    assert (folder / "at-once.json").read_bytes() == (folder / "two.json").read_bytes()


def test_an_external_signer(folder: Path) -> None:
    script = folder / "signer.py"
    script.write_text(
        "import sys\n"
        "from cryptography.hazmat.primitives.serialization import load_pem_private_key as load\n"
        "key = load(open(sys.argv[1], 'rb').read(), None)\n"
        "sys.stdout.buffer.write(key.sign(sys.stdin.buffer.read()))\n"
    )

    def external(private: str, public: str) -> Result:
        command = shlex.join([sys.executable, str(script), str(folder / private)])
        return run(
            "sign",
            folder / "policy.yaml",
            *("--signer-command", command),
            *("--public-key", folder / public, "--out", folder / "external.json"),
        )

    assert external("bob.key", "bob.pub").exit_code == 0
    good("verify", folder / "external.json", "--key", folder / "bob.pub", *AT)
    wrong = external("carol.key", "bob.pub")
    assert wrong.exit_code == 1
    assert "is not valid under it" in wrong.stderr
    command = ("--signer-command", "sign --pin 271828 'it")
    words = (*command, "--public-key", folder / "bob.pub", "--out", "x")
    unfinished = run("sign", folder / "policy.yaml", *words)
    assert unfinished.exit_code == 1
    assert "cannot be split into words: No closing quotation" in unfinished.stderr
    assert "271828" not in unfinished.stderr
    failed = external("nothing.key", "bob.pub")
    assert failed.exit_code == 1
    assert "failed with status" in failed.stderr


@pytest.mark.parametrize(
    ("question", "status", "said"),
    [
        (("--from", f"{S}/a", "--to", f"{S}/b"), 0, "allow[0]"),
        (("--from", f"{S}/ops/x", "--to", f"{S}/b"), 0, "allow[1]"),
        (("--from", f"{S}/b", "--to", f"{S}/a"), 1, "does not match"),
        (("--from", f"{S}/a", "--to", "b"), 0, f"may be reached: {S}/b"),
        (("--from", f"{S}/c", "--to", "b"), 1, "no rule under `allow`"),
        (("--from", f"{S}/c", "--to", "nobody"), 1, "does not know"),
        (("--caller", "unix:uid=1000", "--caller", "unix:path=/bin/a"), 0, "rule a gives"),
        (
            ("--caller", "unix:uid=1000", "--caller", "unix:path=/bin/a"),
            0,
            "none in confidential guests",
        ),
        (("--caller", "unix:uid=1000", "--caller", "unix:path=/bin/b"), 1, "unix:path is /bin/b"),
        (("--measurement", "ab" * 48, "--identity", f"{S}/a"), 0, "n grants it"),
        (("--measurement", "ab" * 48, "--identity", f"{S}/b"), 1, "may not ask for"),
        (
            ("--measurement", "ab" * 48, "--identity", f"{S}/a", "--dns-name", "x.org"),
            1,
            "DNS name x.org",
        ),
    ],
)
def test_explain(folder: Path, question: tuple[str, ...], status: int, said: str) -> None:
    result = run("explain", signed(folder), *question)
    assert result.exit_code == status, result.output
    assert said in result.stdout
    assert ("allowed" if status == 0 else "denied") in result.stdout
    answer = json.loads(run("explain", signed(folder), *question, "--output", "json").stdout)
    assert answer["allowed"] is (status == 0)


def test_cases(folder: Path) -> None:
    cases: dict[str, list[dict[str, Any]]] = {
        "cases": [
            {
                "name": "a",
                "caller": {"unix:uid": "1000", "unix:path": "/bin/a"},
                "identities": [f"{S}/a"],
                "dns_names": [],
            },
            {"caller": {"unix:uid": "1001"}, "identities": []},
            {"from": f"{S}/a", "to": f"{S}/b", "expect": "allowed"},
            {"from": f"{S}/b", "to": "b", "expect": "refused"},
            {
                "node": {"measurement": "ab" * 48},
                "asks": {"spiffe_id": f"{S}/a", "dns_names": ["a.example.org"]},
                "expect": "allowed",
            },
            {"node": {"measurement": "cd"}, "asks": {"spiffe_id": f"{S}/a"}, "expect": "refused"},
        ]
    }
    path = folder / "cases.yaml"
    path.write_bytes(yaml_bytes(cases))
    assert "6 passed, 0 failed" in good("test", signed(folder), path)
    cases["cases"][2]["expect"] = "refused"
    path.write_bytes(yaml_bytes(cases))
    result = run("test", folder / "policy.yaml", path)
    assert result.exit_code == 1
    assert "case 3: expected refused, found allowed" in result.stdout
    cases["cases"][2]["caller"] = {"unix:uid": "1"}
    path.write_bytes(yaml_bytes(cases))
    assert run("test", folder / "policy.yaml", path).exit_code == 2


def test_diff_says_in_words_what_changes(folder: Path) -> None:
    assert good("diff", signed(folder), folder / "policy.yaml") == (
        "nothing that is enforced changes\n"
    )
    fields = yaml.safe_load((folder / "policy.yaml").read_text())
    fields["epoch"] = 5
    fields["allow"][0]["from"] = f"{S}/c"
    fields["nodes"][0]["grants"][0]["max_lifetime"] = "5m"
    fields["workloads"][0]["spiffe_id"] = f"{S}/z"
    fields["services"] = {"c": f"{S}/c"}
    new = folder / "new.yaml"
    new.write_bytes(yaml_bytes(fields))
    lines = good("diff", signed(folder), new).splitlines()
    assert "epoch: 4 becomes 5" in lines
    assert f"allow: {S}/a may no longer talk to {S}/b" in lines
    assert f"allow: {S}/c may now talk to {S}/b" in lines
    assert f"workloads: a.spiffe_id: {S}/a becomes {S}/z" in lines
    assert "services: b is removed" in lines
    assert f"services: c is added ({S}/c)" in lines
    assert any(line.startswith("nodes: n.grants: with") and "5m" in line for line in lines)
    assert json.loads(good("diff", signed(folder), new, "--output", "json"))["changes"] == lines


def test_no_text_of_a_policy_forges_or_hides_a_line(folder: Path) -> None:
    fields = yaml.safe_load((folder / "policy.yaml").read_text())
    hidden = "x\x1b[2K\rnothing that is enforced changes\nallow: nothing"
    fields["nodes"][0]["attributes"] = {hidden: [hidden]}
    fields["workloads"][0]["match"]["unix:path"] = hidden
    new = folder / "new.yaml"
    new.write_bytes(yaml_bytes(fields))
    for answer in (
        good("diff", signed(folder), new),
        run("lint", new).output,
        run("explain", new, "--caller", "unix:uid=1000").output,
    ):
        assert "\x1b" not in answer
        assert "\r" not in answer
        assert "\nallow: nothing" not in answer
    assert len(good("diff", signed(folder), new).splitlines()) == 2


def test_new_begins_a_document_that_lint_accepts(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    good("new", "--trust-domain", "example.org", "--out", path)
    text = good("lint", path)
    assert "allow is empty" in text
    assert run("lint", path, "--strict").exit_code == 1
    assert run("new", "--trust-domain", "example.org", "--out", path).exit_code == 2
    path.write_text(path.read_text().replace("limits:", "limit:"))
    result = run("lint", path)
    assert result.exit_code == 2
    assert "did you mean limits?" in result.stderr


def test_lint_names_what_is_hardly_meant(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(
        yaml_bytes(
            document(
                nodes=[{"name": "n", "grants": [{"spiffe_ids": f"{S}/**"}]}],
                allow=[
                    {"from": f"{S}/**", "to": f"{S}/b"},
                    {"from": f"{S}/a", "to": f"{S}/b"},
                    {"from": "spiffe://far.org/x", "to": f"{S}/b"},
                ],
            )
        )
    )
    text = good("lint", path, "--at", "2026-12-31T00:00:00Z")
    for said in (
        "less than 3 days",
        "more than 90 days",
        "n names neither",
        "n may ask for every identity",
        "allow[1] says nothing that allow[0] does not say",
        "allow[2].from: spiffe://far.org/x is in a trust domain that federation does not name",
    ):
        assert said in text


GET, EITHER = [{"methods": ["GET"]}], [{"methods": ["GET"]}, {"methods": ["PUT"]}]


@pytest.mark.parametrize(
    ("wider", "rule", "idle"),
    [
        ({}, {}, True),
        ({}, {"requests": GET}, True),
        ({"requests": EITHER}, {"requests": GET}, True),
        ({"requests": GET, "requests_enforce": False}, {"requests": GET}, True),
        ({"requests": GET}, {}, False),
        ({"requests": GET}, {"requests": EITHER}, False),
        ({"requests": GET}, {"requests": GET, "requests_enforce": False}, False),
    ],
)
def test_lint_takes_no_rule_for_superfluous_that_allows_more_requests(
    wider: dict[str, Any], rule: dict[str, Any], *, idle: bool, tmp_path: Path
) -> None:
    """Who removed such a rule would deny what it alone allows."""
    rules = [{"from": f"{S}/*", "to": f"{S}/b"} | wider, {"from": f"{S}/a", "to": f"{S}/b"} | rule]
    path = tmp_path / "policy.yaml"
    path.write_bytes(yaml_bytes(document(allow=rules)))
    assert ("allow[1] says nothing" in good("lint", path)) is idle


@pytest.mark.parametrize("name", ["b.YAML", "b.Yml"])
def test_no_file_of_a_directory_is_left_out_for_its_case(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.yaml").write_bytes(yaml_bytes(document()))
    (tmp_path / name).write_text("limits: {max_lifetime: 5m}\n")
    result = run("lint", tmp_path)
    assert result.exit_code == 2
    assert f"{name} would be left out" in result.output


@pytest.mark.parametrize("name", ["shop", "shop.yaml"])
def test_no_folder_of_a_directory_is_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.yaml").write_bytes(yaml_bytes(document()))
    (tmp_path / ".git").mkdir()
    good("lint", tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "b.yaml").write_text("limits: {max_lifetime: 5m}\n")
    result = run("lint", tmp_path)
    assert result.exit_code == 2
    assert f"{name} would be left out" in result.output


def test_a_directory_is_one_document(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "10-head.yaml").write_bytes(yaml_bytes(document(allow=[])))
    (folder / "20-shop.yml").write_text(f"allow:\n  - {{from: {S}/a, to: {S}/b}}\n")
    (folder / "30-ops.yaml").write_text(f"---\nallow:\n  - {{from: {S}/o, to: {S}/a}}\n")
    (folder / "ignored.txt").write_text("no")
    assert "2 allow rules" in good("lint", folder)
    good("keygen", "--out", tmp_path, "--name", "a")
    good("sign", folder, "--key", tmp_path / "a.key", "--out", tmp_path / "s.json")
    good("explain", tmp_path / "s.json", "--from", f"{S}/o", "--to", f"{S}/a")
    (folder / "40-again.yaml").write_text("epoch: 9\n")
    result = run("lint", folder)
    assert result.exit_code == 2
    assert "epoch was given by an earlier one" in result.stderr


@pytest.mark.no_cover
def test_the_schema_accepts_documents(folder: Path) -> None:
    published = json.loads(good("schema"))
    fields = yaml.safe_load((folder / "policy.yaml").read_text())
    check_schema(published, accepts=fields, refuses={**fields, "epoc": 1})


def test_hardware_signing_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    ecdsa = Signatory.ecdsa("token")
    (folder / "token.pub").write_text(ecdsa.public.pem)
    result = CliRunner().invoke(
        cli.main,
        [
            *("policy", "sign", str(folder / "policy.yaml"), "--pkcs11", "hsm:2"),
            *("--public-key", str(folder / "token.pub"), "--out", str(folder / "t.json")),
        ],
        input="123456\n",
    )
    assert result.exit_code == 2
    assert "PKCS#11" in result.stderr
    assert "123456" not in result.output


@pytest.mark.parametrize("domain", ["-1", "1.5", "2026", "null", "true", "0x10", "a.example"])
def test_every_trust_domain_begins_a_valid_policy(domain: str) -> None:
    """Even one that YAML would read as a number."""
    text = run("new", f"--trust-domain={domain}").stdout
    assert parse_source(text.encode(), what="it").trust_domain == domain
