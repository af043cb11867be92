"""Metrics: what an operator sees of the agent and of the authority.

Invariants: metrics wrap ports (the authority, attester, verifier, store), so that no deciding
code calls one; every family has a help text and a unit; no label takes a value that a peer can
choose without bound; nothing secret is a label or a value.
"""
