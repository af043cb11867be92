"""Serves a CSI driver: each pod gets its own directory with its own socket, without a hostPath.

The kubelet asks this driver for an ephemeral inline volume. The driver makes a directory at the
path that the kubelet names, and a socket in it on which the agent listens. It mounts nothing, so
the agent needs no privilege for it. The kernel still says who connects: the front door refuses a
caller that is not in the pod that the socket is for.
"""
