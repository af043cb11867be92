"""Contains the commands of ``sds``, a module for each area, which ``sds.cli`` loads when called.

Invariant: a command reads its arguments, calls one function of its area and prints; it decides
nothing. A failure is raised as an :class:`sds.errors.SdsError`; only ``sds.cli`` exits.
"""
