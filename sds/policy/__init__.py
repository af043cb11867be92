"""Signed policy: the document, its signatures, what it decides, and which one is in force.

Invariant of the package: everything that enforces takes a :class:`sds.policy.trust.Policy`, and
only :func:`sds.policy.trust.verify` makes one.
"""
