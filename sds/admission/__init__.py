"""Admits at the runtime: nothing starts or enters a container unless a signed rule allows it.

A wrapper takes the OCI runtime's place (``BinaryName`` of every containerd handler). It asks a
service in the same guest about each ``create`` and ``exec``; that service reads the signed policy
itself, so the agent need not run. See docs/adr/0606-a-wrapper-around-the-oci-runtime.md.

Invariant of the package: without an answer, nothing starts.
"""
