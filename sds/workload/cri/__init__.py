"""The ``cri`` attestor: what runs in a caller's pod, by the word of the runtime in the same guest.

pid → control group → container ID → the runtime's CRI socket: image configuration, arguments,
environment, user, capabilities, mounts and namespaces of *every* container of the pod. Nothing is
asked of the kubelet or the API server, whose adversary writes to etcd.

Invariant of the package: a pod is what its rule lists, and nothing else: one container that the
list does not have takes the identity from the whole pod until its sandbox is gone.
"""
