"""Reasons of errors when evidence is collected, parsed, verified or appraised."""

from __future__ import annotations

from typing import Final

from sds.reasons.row import Reason

ATTESTATION: Final[dict[str, Reason]] = {
    "evidence": Reason("A general reason: the message says what is wrong."),
    "evidence_malformed": Reason(
        "Collect it again. If the error stays, the file is not evidence, or the firmware is of "
        "another kind."
    ),
    "report_data_mismatch": Reason(
        "The evidence was made for another request, or is a replay. Check that nothing intercepts "
        "the connection between agent and authority.",
    ),
    "authority_evidence": Reason(
        "Check the address, and that `reference_values` names the authority's machine and "
        "measurement.",
    ),
    "report_length": Reason(
        "This is neither an SNP report (1184 bytes) nor a TDX quote; check what was collected or "
        "which file was given.",
    ),
    "report_version": Reason(
        "The firmware is newer or older than this program knows. Update the program or the "
        "firmware."
    ),
    "reserved_bytes": Reason(
        "The report is damaged or forged: it differs from its specification. Collect it again; if "
        "the error stays, distrust the node.",
    ),
    "signature_algorithm": Reason(
        "The report is damaged or forged. Distrust the node until you know better."
    ),
    "signature_range": Reason(
        "The report is damaged or forged. Distrust the node until you know better."
    ),
    "signature_invalid": Reason(
        "The report was changed, or the certificates belong to another chip. Collect both "
        "again; if the error stays, distrust the node.",
    ),
    "product_mismatch": Reason("Use the certificates of this processor's product line."),
    "endorsement_missing": Reason(
        "Put the chip's certificates (VCEK or VLEK, ASK, ARK) into the configured folder, or "
        "let the host provide the extended report.",
    ),
    "chain_untrusted": Reason(
        "The chain does not end in AMD's or Intel's root. If the machine is simulated, name its "
        "root, for tests only.",
    ),
    "certificate_validity": Reason("Check the clock; fetch the certificates again."),
    "certificate_revoked": Reason("The manufacturer revoked it. Take this machine out of service."),
    "revocation_list": Reason("Fetch the list again from the manufacturer."),
    "revocation_list_stale": Reason(
        "Fetch the newest revocation list: `sds collateral fetch` does so once, and "
        "`verification.fetch` keeps it current.",
        retriable=True,
    ),
    "endorsement_tcb_mismatch": Reason(
        "The certificate is for other firmware versions. Fetch the VCEK for the reported TCB."
    ),
    "endorsement_chip_mismatch": Reason(
        "The certificate is for another chip. Fetch the certificate of this chip."
    ),
    "signing_key_mismatch": Reason(
        "Report and certificate name different kinds of key (VCEK and VLEK), or the report names "
        "neither. Use the certificate of the key that signed.",
    ),
    "debug_allowed": Reason(
        "Start the guest without the debug policy. Never allow it in production."
    ),
    "migration_agent": Reason("Start the guest without a migration agent."),
    "vmpl": Reason("Ask for the report at VMPL 0, or allow the level on purpose."),
    "masked_chip_key": Reason(
        "Switch masking of the chip key off in the host's SEV configuration."
    ),
    "provisional_firmware": Reason("Commit the firmware (SNP_COMMIT) on the host."),
    "tcb_below_minimum": Reason(
        "Update the firmware of that host, or lower the minimum on purpose."
    ),
    "measurement": Reason(
        "If the image is yours, add its measurement to the reference values and sign the next "
        "epoch. If not, find out what runs there.",
    ),
    "guest_identity": Reason(
        "The message names the field; correct the launch or the reference values."
    ),
    "host_data": Reason("Launch with the host data that the reference values name, or add them."),
    "id_key": Reason(
        "Launch with an identity block signed by a listed key, or list the key's digest."
    ),
    "author_key": Reason("Launch with a listed author key, or list its digest."),
    "guest_svn_below_minimum": Reason(
        "Deploy the newer image: this one is below the minimum of the reference values."
    ),
    "guest_policy": Reason("Launch with a guest policy that meets the reference values."),
    "platform": Reason("The message names the field; move the workload, or list the platform."),
    "product_refused": Reason("List the product in the reference values, or move the workload."),
    "chip_refused": Reason(
        "The reference values refuse this chip; move the workload, or change the list."
    ),
    "csp_id": Reason("List the cloud provider's identifier, or move the workload."),
    "mitigation_missing": Reason("Update firmware and host so that the mitigation is active."),
    "tcb_status": Reason(
        "Update the platform (the status says what is out of date), or accept the status in the "
        "reference values.",
    ),
    "td_attributes": Reason("Launch the TD with attributes that the reference values accept."),
    "evidence_kind": Reason(
        "Configure a verifier for this kind of evidence, or the right attester."
    ),
    "evidence_unavailable": Reason(
        "This passes by itself. If it does not, look at `/dev/sev-guest`, configfs-tsm and the "
        "host.",
        retriable=True,
    ),
    "evidence_unsupported": Reason(
        "This machine cannot give such evidence. Choose the right `attestation.kind`, or `auto`."
    ),
    "endorsement_unavailable": Reason(
        "This passes when the manufacturer's service answers. With the chip's certificate in "
        "`attestation.certificates` or `attestation.certificate_cache`, the program need not ask.",
        retriable=True,
    ),
    "collateral_missing": Reason(
        "Put the TDX collateral into the configured folder. If the process fetches it, this "
        "passes; if it does not, the log says which publisher does not answer.",
        retriable=True,
    ),
    "collateral_untrusted": Reason(
        "Fetch the collateral again from Intel's service or your own cache."
    ),
    "collateral_stale": Reason(
        "Fetch the collateral again: `sds collateral fetch` does so once, and "
        "`verification.fetch` keeps it current.",
        retriable=True,
    ),
    "quoting_enclave": Reason(
        "Update the platform's quoting enclave, or fetch its identity again."
    ),
    "tdx_module": Reason("Update the TDX module, or fetch the collateral again."),
    "tpm_quote": Reason(
        "The TPM signed something other than a quote. Collect it again with this program."
    ),
    "tpm_key": Reason("Attest with a restricted signing key that the TPM made and never releases."),
    "vtpm_unbound": Reason(
        "The hardware report does not vouch for the key of this vTPM. Read the paravisor's blob "
        "and the quote in one go; if the error stays, distrust the node."
    ),
    "pcr": Reason(
        "If the boot chain is yours, add its PCR values to the reference values and sign the next "
        "epoch. If not, find out what started there.",
    ),
    "tpm_key_unknown": Reason(
        "Add the key's digest to `aks`, its endorsement key to `eks`, or the manufacturer's root "
        "to `ek_roots` of the reference values."
    ),
    "credential_needed": Reason(
        "The agent answers by itself, in a second round. If the error stays, look at the agent's "
        "log: its TPM refuses to open the authority's credential.",
        retriable=True,
    ),
    "tpm_refused": Reason(
        "The response code says why the TPM refuses. Check the key's handle, the hierarchies' "
        "passwords, and that the index exists."
    ),
    "pcr_values": Reason(
        "The PCR values are not those that the TPM quoted, or their bank is too weak. Quote the "
        "SHA-256 bank, and ask again.",
        retriable=True,
    ),
    "token_unavailable": Reason(
        "Mount the projected service-account token; the kubelet writes it a moment after the "
        "pod starts.",
        retriable=True,
    ),
    "token_claims": Reason(
        "Project the token with the audience and binding that the authority's configuration names.",
    ),
    "token_time": Reason("Check the clock, and that the kubelet refreshes the projected token."),
    "token_account": Reason(
        "Allow the account in the authority's `kubernetes` section, or run the agent under "
        "the right one.",
    ),
    "exchange_key_missing": Reason(
        "The reference values accept only evidence that an exchange key signed "
        "(`require_exchange_key`). Set `attestation.exchange_key` on that machine. If it is set, "
        "another process in the guest made this evidence: find out which.",
    ),
    "exchange_key_register": Reason(
        "The runtime register does not show this key and then the cap. Restart the machine. If the "
        "error stays, find out what extends the register there.",
    ),
    "exchange_key_signature": Reason(
        "A process without the exchange key made this evidence. Distrust the node until you know "
        "better.",
    ),
    "exchange_key_lost": Reason(
        "The register shows a key that this process does not have. Restart the machine. Start the "
        "service before containers, with `FileDescriptorStoreMax=1` and "
        "`FileDescriptorStorePreserve=yes`.",
    ),
    "exchange_key_store": Reason(
        "Run the program as a systemd service with `FileDescriptorStoreMax=1`, or leave "
        "`attestation.exchange_key` out.",
    ),
    "runtime_register": Reason(
        "`attestation.exchange_key` needs root, and a TDX guest with Linux 6.16 or later or, with "
        "`pcr`, an Azure confidential VM. Plain SEV-SNP has no runtime register.",
    ),
}
