"""Exports the metrics of the agent and of the authority.

Invariants: metrics wrap ports (the authority, attester, verifier, store), so that code that decides
never calls a metric; every family has a help text and a unit; a peer cannot choose the values of a
label without bound; nothing secret is a label or a value.
"""
