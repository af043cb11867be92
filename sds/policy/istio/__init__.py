"""Converts Istio's AuthorizationPolicy and PeerAuthentication to a policy document.

:mod:`.manifests` reads manifests, :mod:`.rules` converts one field, :mod:`.atoms` computes what a
denial leaves, and :mod:`.conversion` converts the whole mesh. Invariants: the result never allows
more than Istio did; what cannot be expressed is reported with its file and line.
"""
