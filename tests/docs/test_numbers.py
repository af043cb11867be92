"""Numbers that the pages promise are those of the code.

Each row is a text of a page, made from the code's own constants. To change a limit is to change the
page: the row fails until both agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.admission import server as admission_server
from sds.agent.node_settings import NodeSettings
from sds.attestation.collateral import refreshing
from sds.attestation.guest import tsm
from sds.attestation.snp import kds
from sds.attestation.tpm.challenge import WINDOW_SECONDS
from sds.authority import session
from sds.ca import capacity, journal
from sds.ca import connections as ca_connections
from sds.ca import listening as ca_listening
from sds.ca import server as ca_server
from sds.csi.volume import MOST_OF_A_POD
from sds.exchange import challenge
from sds.federation import document, endpoint
from sds.identity import MAX_DNS_NAMES
from sds.operations import http_listener, log_sink, state
from sds.operations import listener_places as places
from sds.pki import MAX_ROOTS
from sds.policy import holder
from sds.policy.envelope import MAX_SIGNED_BYTES
from sds.secrets import issuance_queue, schedule
from sds.secrets.rotation_settings import RotationSettings
from sds.serving import answer_memory, extension_catalog, name_budget, policy_change_order
from sds.serving.limits import ServingLimits
from sds.transport import events, hello_bound, tls_records
from sds.transport import server as transport_server
from sds.workload import connection_rate, front_door
from sds.workload.cri.pods import MOST_BYTES_OF_A_POD
from sds.workload.kubernetes.pods import MOST_LABELS
from sds.workload.kubernetes.services import MOST_SERVICES
from sds.workload.peer import MOST_GROUPS
from tests.support import need

if TYPE_CHECKING:
    from pydantic import BaseModel

MIB, KIB = 1 << 20, 1 << 10


def rate(allowance: tuple[float, float]) -> str:
    """How the table writes a rate: what may come at once, and each second."""
    each_second, at_once = allowance
    return f"{at_once:,.0f} | {each_second:.0f}"


def seconds_of(section: type[BaseModel], name: str) -> str:
    """The default of a setting that is a time."""
    return f"{section.model_fields[name].default.total_seconds():g}"


def under(mebibytes: int) -> str:
    """How many connections an authority takes with so much memory."""
    most = capacity.connections(
        streams=1 << 20, memory=mebibytes * MIB, descriptors=1 << 20, listeners=0
    )
    return f"{most:,} under {mebibytes} MiB"


WORDS = {3: "three", 4: "four", 6: "six", 8: "eight"}
LIMITS = ServingLimits()
SERVER = transport_server.ServerLimits()
CA = ca_server.ExchangeLimits()
LATE, ENDING = f"{state.RENEWAL_LATE:.0%}"[:-1], f"{state.EXPIRING:.0%}"[:-1]
UP_TO, AFTER = f"{1 - schedule.LATEST:.0%}"[:-1], f"{1 - schedule.EARLIEST:.0%}"[:-1]
PROMISES = [
    # --- operations ---
    ("operations", f"An SVID has less than {LATE} % of its life left"),
    ("operations", f"a healthy agent renews it while {UP_TO} to {AFTER} % is left"),
    ("operations", f"Less than {ENDING} % is left, or the SVID has expired"),
    ("operations", f"| a process | {rate(connection_rate._PROCESS)} |"),
    ("operations", f"or a user outside pods | {rate(connection_rate._OWNER)} |"),
    ("operations", f"| a pod without an identity | {rate(connection_rate._STRANGE_POD)} |"),
    ("operations", f"together | {rate(connection_rate._STRANGERS)} |"),
    ("operations", f"beyond {front_door._LINES_APART} owners, the others share one line"),
    ("operations", f"up to {log_sink.MOST_WAITING // MIB} MiB of lines wait"),
    ("operations", f"did not arrive within {admission_server._SECONDS:.0f} s"),
    # --- exchange ---
    ("exchange", f"It contains a nonce of {challenge.NONCE_BYTES} bytes"),
    ("exchange", f"less than {session.VERIFIED_SECONDS:.0f} seconds ago"),
    ("exchange", f"with at most {challenge.MAX_ITEMS:,} items"),
    ("exchange", f"`limits.hello` ({CA.hello_seconds:.0f} s)"),
    (
        "exchange",
        (
            f"a stream has {ca_server._HELLO_LEASE:g} s for its Hello and "
            f"{ca_server._REQUEST_LEASE:g} s for its request"
        ),
    ),
    ("exchange", f"{under(256)}, {under(512)}"),
    ("exchange", f"A connection has {ca_connections._GREETING_SECONDS:.0f} s for its handshake"),
    ("exchange", f"{ca_connections._IDLE_SECONDS:.0f} s to open a call"),
    (
        "exchange",
        (
            "noticed after about "
            f"{ca_listening._QUIET_SECONDS + ca_listening._PROBES * ca_listening._PROBE_SECONDS} s"
        ),
    ),
    ("exchange", f"reads at most 16 KiB and {tls_records.MOST_RECORDS} records at a time"),
    ("exchange", f"A ClientHello has at most {hello_bound.MOST_BYTES // KIB} KiB"),
    (
        "exchange",
        (
            f"{ca_connections._FRAMES_A_SECOND:.0f} frames that carry no data may come each "
            f"second ({ca_connections._FRAMES_AT_ONCE:,} at once)"
        ),
    ),
    ("exchange", f"may decompress to {holder._MOST_BYTES_OF_STRANGERS // MIB} MiB"),
    ("exchange", f"bounded: {journal._LINES_AT_ONCE}, then two a second"),
    ("exchange", f"`limits.message` ({CA.message_bytes // MIB} MiB), and is not compressed"),
    ("exchange", f"covers all waiting Hellos, up to {challenge.MAX_COVERED}"),
    # --- protocol ---
    ("protocol", f"| `names_per_stream` | {LIMITS.names_per_stream:,} |"),
    ("protocol", f"| `message` | {LIMITS.message_bytes // MIB} MiB |"),
    ("protocol", f"| `streams_per_connection` | {LIMITS.streams_per_connection:,} |"),
    ("protocol", f"| `streams_per_socket` | {LIMITS.streams_per_socket:,} |"),
    ("protocol", f"| `requests_per_second` | {LIMITS.requests_per_second:.0f} per stream"),
    ("protocol", f"| `request_burst` | {LIMITS.request_burst:,} per stream"),
    (
        "protocol",
        (
            f"| {LIMITS.names.owner // MIB} MiB of memory for one pod, or user outside pods, "
            f"{LIMITS.names.everybody // MIB} MiB for all; {LIMITS.names.guaranteed // KIB} KiB is "
            f"guaranteed to each ({name_budget.NAME_OVERHEAD} bytes for each name"
        ),
    ),
    (
        "protocol",
        (
            f"does not begin HTTP/2 within {SERVER.greeting_seconds:.0f} s; sends more than "
            f"{events.ConnectionLimits().frames_per_second:,.0f} frames"
        ),
    ),
    ("protocol", f"leaves {SERVER.unread_bytes // MIB} MiB of what it was sent unread"),
    ("protocol", f"sends {SERVER.held_bytes // MIB} MiB that no handler takes"),
    ("protocol", f"An answer has at most {answer_memory.MOST_ANSWER_BYTES // MIB} MiB"),
    ("protocol", f"after {policy_change_order.PATIENCE_SECONDS * 1000:.0f} ms at the latest"),
    ("protocol", f"extends the TTL {WORDS[extension_catalog._BEATS]} times"),
    # --- attestation ---
    ("attestation", f"it tries again, at most {WORDS[tsm.ATTEMPTS]} times"),
    (
        "attestation",
        f"makes {WORDS[kds.ATTEMPTS]} attempts of {kds.TIMEOUT_SECONDS:.0f} seconds each",
    ),
    (
        "attestation",
        f"a proof for {WINDOW_SECONDS // 60} to {2 * WINDOW_SECONDS // 60} minutes",
    ),
    (
        "attestation",
        f"It serves {places.MAX_CONNECTIONS} connections and lets {places.MAX_WAITING:,} more wait",
    ),
    (
        "attestation",
        f"fewer than {places.MAX_WAITING * places._PART_OF_DESCRIPTORS:,} descriptors",
    ),
    (
        "attestation",
        (
            f"of at most {WORDS[int(refreshing.AFTER_FAILURE.longest) // 3600]} hours "
            f"({refreshing.WHILE_MISSED.longest / 60:.0f} minutes while evidence is refused"
        ),
    ),
    # --- others ---
    ("policy", f"of at most {MAX_SIGNED_BYTES // MIB} MiB"),
    ("policy", f"at most {holder._MOST_BYTES_OF_STRANGERS // MIB} MiB from an agent"),
    (
        "federation",
        (
            f"It reads at most {endpoint._MOST_RECEIVED // MIB} MiB of an answer. The document in "
            f"it has at most {document.MAX_DOCUMENT_BYTES // MIB} MiB and {MAX_ROOTS} roots"
        ),
    ),
    ("istio", f"more than {MAX_ROOTS} roots"),
    ("kubernetes", f"A pod gets at most {MOST_OF_A_POD} volumes of this driver"),
    ("kubernetes", f"would have more than {MAX_DNS_NAMES} DNS names"),
    ("kubernetes", f"keep more than {MOST_BYTES_OF_A_POD // KIB} KiB"),
    ("kubernetes", f"at most {issuance_queue._AHEAD_ITEMS} in a request"),
    ("kubernetes", f"it wait for `node.hold` ({seconds_of(NodeSettings, 'hold')} s)"),
    ("kubernetes", f"at most `node.recheck` ({seconds_of(NodeSettings, 'recheck')} s) later"),
    ("workload-api", f"at most `node.hold` ({seconds_of(NodeSettings, 'hold')} s)"),
    ("threat-model", f"beyond {MOST_GROUPS:,} groups or {MOST_LABELS} labels"),
    ("threat-model", f"a pod that more than {MOST_SERVICES} Services select"),
    ("threat-model", f"of at most {http_listener._MAX_LINES} lines"),
    ("reliability", f"the smallest of these: {schedule.RETRY_GAP:.0%}".replace("%", " %")),
    (
        "reliability",
        (
            f"{schedule.MAX_HELD_GAP_SECONDS / 60:.0f} minutes; "
            "and, while a workload has no certificate, "
            f"{schedule.MAX_WAITING_GAP_SECONDS:.0f} s"
        ),
    ),
    ("reliability", f"for the ACKs, for {RotationSettings().ack_wait.seconds} s at most"),
    ("reliability", f"has been in the bundle for {RotationSettings().settling.seconds} s"),
]


@pytest.mark.parametrize(("page", "text"), PROMISES, ids=[text[:40] for _, text in PROMISES])
def test_the_page_says_what_the_code_does(page: str, text: str) -> None:
    found = " ".join((need.ROOT / "docs" / f"{page}.md").read_text().split())
    assert text in found
