"""The commands of ``sds``, one module an area; ``sds.cli`` finds them by name and loads them late.

Invariant: a command reads its arguments, calls one function of its area and prints; it decides
nothing. A failure is raised as an :class:`sds.errors.SdsError`; only ``sds.cli`` exits.
"""
