"""Documents that describe the tree agree with it: where to change what, decisions, layers."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support import need

CONTRIBUTING = (need.ROOT / "CONTRIBUTING.md").read_text()
SECTION = CONTRIBUTING.split("## Where would I change…", 1)[1].split("\n## ", 1)[0]
ROWS = re.findall(r"^\| (?!to change|---)(.+?) \| (.+?) \|$", SECTION, flags=re.MULTILINE)
DECISIONS = sorted((need.ROOT / "docs" / "adr").glob("[0-9]*.md"))


def test_the_table_answers_at_least_twenty_questions() -> None:
    assert len(ROWS) >= 20
    questions = [question for question, _ in ROWS]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize(("question", "answer"), ROWS)
def test_each_answer_is_one_path_that_exists(question: str, answer: str) -> None:
    found = re.fullmatch(r"`([^`]+)`", answer)
    assert found, f"{question!r} needs one path: {answer}"
    path = need.ROOT / found[1]
    assert path.exists(), f"{question!r}: {found[1]} is not there"
    assert path.is_dir() == found[1].endswith("/"), found[1]


DEFINED = {
    "which kinds of evidence there are": "KINDS",
    "how settings become attesters and verifiers": "make_attester",
    "a check of SEV-SNP reports against reference values": "appraise_snp",
    "a check of TDX quotes against reference values": "appraise_td",
    "which revocation lists a chain of AMD needs": "check_revocation",
    "which revocation lists a chain of Intel needs": "check_revocation",
    "what evidence binds (`report_data`)": "authority_report_data",
    "which checks the authority makes on a request, in which order": "RegistrationAuthority",
    "what must outlive every certificate (roots, nonces)": "longest_lifetime",
    "to which lifetime a grant limits a certificate": "Permit",
    "how many agents one report of the authority answers": "MAX_COVERED",
    "which replica an agent asks": "ReplicaOrder",
    "when a certificate is renewed, retried or withdrawn": "decide",
    "how identities share one request to the authority": "IssuanceQueue",
    "when a retired key is wiped": "RELEASE_SECONDS",
    "which attestors of workloads there are": "ATTESTORS",
    "DNS names from Kubernetes Services": "service_dns_names",
    "what client status (CSDS) redacts": "REDACTED",
    "limits on clients of a socket": "ServingLimits",
    "the mode and group of sockets": "open_to",
    "readiness": "Readiness",
    "how many signers a policy needs": "TrustedKeys",
    "what Envoy must enforce for a workload": "authorization_of",
    "what `sds bootstrap` prints": "make_bootstrap",
}
"""Question -> what its file must define, so that a row cannot stay behind when code moves."""


@pytest.mark.parametrize("question", DEFINED)
def test_the_file_of_a_row_defines_what_it_is_about(question: str) -> None:
    path = dict(ROWS)[question].strip("`")
    text = (need.ROOT / path).read_text()
    assert re.search(
        rf"^(?:async )?(?:def|class) {DEFINED[question]}\b|^{DEFINED[question]}\b.* = ",
        text,
        flags=re.MULTILINE,
    ), path


def test_every_folder_of_tests_is_described() -> None:
    described = set(re.findall(r"^\| `(tests/\w+)` \|", CONTRIBUTING, flags=re.MULTILINE))
    folders = {
        f"tests/{path.name}"
        for path in (need.ROOT / "tests").iterdir()
        if any(path.glob("**/test_*.py"))
    }
    assert described == folders


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_each_decision_is_in_the_index_with_its_title_and_state(page: object) -> None:
    text = need.ROOT.joinpath(str(page)).read_text()
    heading = re.match(r"# (\d{4}): (.+)\n\n\*\*State\.\*\* ((?:.+\n)+)", text)
    assert heading, f"{page} needs a heading `# NNNN: title` and a line `**State.** …`"
    number, title, state = heading.groups()
    name = str(page).rpartition("/")[2]
    assert name.startswith(f"{number}-")
    row = f"| [{number}]({name}) | {title} | {' '.join(state.split())} |"
    assert row in (need.ROOT / "docs" / "adr" / "index.md").read_text().splitlines()


def test_the_layers_of_the_design_are_those_that_are_enforced() -> None:
    linter = tomllib.loads((need.ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    enforced = [
        set(re.findall(r"\w+", layer)) - {"__main__", "entry"}
        for layer in linter["contracts"][0]["layers"]
    ]
    table = (need.ROOT / "docs" / "design.md").read_text().split("## Layers", 1)[1]
    rows = re.findall(r"^\| \d+ \| ([^|]*(?:\\\|[^|]*)*) \|", table, flags=re.MULTILINE)
    described = [set(re.findall(r"`(\w+)`", row)) for row in rows]
    together: list[set[str]] = []
    for layer in enforced:
        if not layer:
            continue
        # The command line is one layer to a reader.
        if layer == {"commands"} and together and together[-1] == {"cli"}:
            together[-1] |= layer
        else:
            together.append(layer)
    assert described == together
