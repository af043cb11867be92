"""The node-wide socket: one socket for every process of the node, each known by the kernel.

Invariant of the package: it exists only where an attestor other than ``socket`` is configured, and
composes what ``sds.workload`` decides with what serves (``sds.xds``, ``sds.workload_api``).
"""
