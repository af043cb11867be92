"""The ``cri`` attestor: what runs in a caller's pod, as the runtime in the same guest reports it.

pid → control group → container ID → the runtime's CRI socket: image configuration, arguments,
environment, user, capabilities, mounts and namespaces of *every* container of the pod. The attestor
does not ask the kubelet or the API server, because an adversary may write to etcd.

Invariant of the package: a pod has its identity only while it consists of what its rule lists. One
container that is not on the list takes the identity from the whole pod until its sandbox is gone.
"""
