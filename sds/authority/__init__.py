"""Certificate authorities as the agent sees them: the port that rotation uses, and its clients.

Invariant: no client imports the server (``sds.ca``); ``sds.exchange`` has what both ends share.
"""
