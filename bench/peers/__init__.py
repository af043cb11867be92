"""Other secret discovery servers, measured beside ours: SPIRE's agent and Istio's SDS server.

Nothing of theirs is in this repository: :mod:`bench.peers.programs` builds them from the Go module
proxy, once, into the ignored folder ``.tools/``.
"""
