"""Signed policy: the document, its signatures, what it decides, and which one is in force.

Invariant of the package: only an :class:`sds.policy.trust.AdmittedPolicy` is ever in force, and
only :func:`sds.policy.trust.admit` makes one.
"""
