"""Serves the status page: what an agent does, at a glance, for a person at the node.

Invariants: the page changes nothing; it shows public facts only (names, times, serials, versions,
errors in words), never a key or a token; it is one document that loads nothing else.
"""
