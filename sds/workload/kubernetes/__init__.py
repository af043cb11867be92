"""The ``kubernetes`` attestor: from a process to its pod, service account and Services.

pid → ``/proc/PID/cgroup`` → pod UID (and container ID) → the kubelet's pod list → namespace,
service account, labels, image digest; Services that select the pod come from a watch on the API
server. The official client library is not used: importing it takes 100 MB and seconds on every
node, for one GET and one watch (docs/adr/0601-kubernetes-without-the-client-library.md).

Invariant of the package: a pod is matched by its UID only; the container ID leads only to facts
about that container.
"""
