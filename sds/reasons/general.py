"""Reasons of errors of the program, its configuration, identities, keys and certificates."""

from __future__ import annotations

from typing import Final

from sds.reasons.row import Reason

GENERAL: Final[dict[str, Reason]] = {
    "internal": Reason(
        "A fault of this program. Report it with the log line and the version (`sds --version`).",
    ),
    "configuration": Reason(
        "Correct the field that the message names; `sds agent --check-config` and `sds ca "
        "--check-config` try a file without starting.",
    ),
    "socket": Reason(
        "Choose a shorter path (the path of a Unix socket has at most 107 bytes) or a directory "
        "that you may write to, or end the process that uses the socket.",
    ),
    "directory_not_ours": Reason(
        "Another user owns the directory or one above it, can write there, or put a symbolic link "
        "on the path. Give the directory to the agent's user, or set another `run_dir`.",
    ),
    "identity": Reason(
        "Write SPIFFE IDs as `spiffe://trust-domain/path`, trust domains in lower case "
        "without a scheme, DNS names in lower case without wildcards.",
    ),
    "key_type": Reason(
        "Choose `ec-p256` (the default), `ec-p384` or an RSA type; Envoy's server refuses "
        "Ed25519 clients.",
    ),
    "certificate": Reason("A general reason: the message says what is wrong."),
    "certificate_malformed": Reason(
        "Find out who sent it. A certificate authority that sends such a certificate is broken, or "
        "is not the one that you expect.",
    ),
    "certificate_untrusted": Reason(
        "Check that the configured roots are those of this authority, and that nobody "
        "intercepts the connection.",
    ),
    "certificate_key_mismatch": Reason(
        "The answer is for another request. If it happens again, suspect the authority, or "
        "something that intercepts the connection.",
    ),
    "certificate_name_mismatch": Reason(
        "The certificate has names that the agent did not ask for, or lacks some. Check the "
        "authority's rules, or Istio's account.",
    ),
    "certificate_expired": Reason(
        "Check the clocks of both sides. If the authority's own chain has expired, renew that "
        "first.",
    ),
    "certificate_not_yet_valid": Reason(
        "The clock of this machine is behind the authority's. Synchronise it.",
        retriable=True,
    ),
    "certificate_constraint": Reason(
        "The certificate authority's own certificate forbids this use; issue it again with "
        "`CA:TRUE`, `keyCertSign` and without that name constraint.",
    ),
    "certificate_path_length": Reason(
        "The hierarchy is deeper than a certificate in it allows, or the chain came without "
        "its intermediates.",
    ),
    "csr_invalid": Reason(
        "Make the request again from the key: its signature is missing, or something changed it."
    ),
    "part_ended": Reason("The demo's output above says why that part ended."),
    "request_failed": Reason("The demo's Envoy logs say why; they are in its run directory."),
    "demo_not_ready": Reason(
        "The machine is slow, or a port is in use. Run it again with `--output json`."
    ),
    "secret_wiped": Reason("A fault of this program. Report it."),
    "secret_absent": Reason("Ask for a name that `sds whoami` or the policy gives this workload."),
}
