"""The status page: what an agent does, at a glance, for the person beside the node.

Invariants: read-only; public facts only (names, times, serials, versions, errors in words), never
a key or a token; the page is one document that loads nothing, not even from ourselves.
"""
