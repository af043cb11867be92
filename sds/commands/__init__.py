"""Contains the commands of ``sds``, one module an area; ``sds.cli`` loads each when it is called.

Invariant: a command reads its arguments, calls one function of its area and prints; it decides
nothing. A failure is raised as an :class:`sds.errors.SdsError`; only ``sds.cli`` exits.
"""
