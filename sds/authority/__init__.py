"""Certificate authorities, seen from the agent: the port that rotation uses and its clients.

Invariant: no client knows the server (``sds.ca``); ``sds.exchange`` has what both ends share.
"""
