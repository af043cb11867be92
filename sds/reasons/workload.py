"""Reasons of errors of callers on a socket, the kubelet and the Kubernetes API server."""

from __future__ import annotations

from typing import Final

from sds.reasons.row import Reason

WORKLOAD: Final[dict[str, Reason]] = {
    "workload": Reason("A general reason: the message says what is wrong."),
    "peer_credentials": Reason(
        "Use a Unix socket of this host; in Kubernetes the agent needs `hostPID`."
    ),
    "process_unreadable": Reason(
        "Raise the agent's limit of open files; if `/proc` is mounted with `hidepid`, give the "
        "agent the group of its option `gid=`, or CAP_SYS_PTRACE.",
        retriable=True,
    ),
    "recognition_failed": Reason(
        "An attestor failed unexpectedly. Please report it, with the traceback from the agent's "
        "log.",
        retriable=True,
    ),
    "peer_gone": Reason("There is nothing to do: the process ended."),
    "too_many_facts": Reason(
        "The process is in more groups, or its pod has more labels, than the agent reads. So the "
        "agent decides no rule on groups (or labels) for it. The message says what to do.",
    ),
    "executable_refused": Reason(
        "Run the program from an ordinary file system, or raise `node.largest_executable`. The "
        "agent reads no file that its own user can forge, so it decides no rule on executables "
        "for such a caller. A caller that had an identity by such a rule has lost it.",
    ),
    "executable_unreadable": Reason(
        "Give the agent the right to read `/proc/PID/exe` of its callers, or do not use "
        "executable selectors.",
    ),
    "executable_late": Reason(
        "The file system of the executable hangs, or its owner keeps changing large executables. "
        "Add `unix:uid` or a `k8s:` selector to rules on `unix:sha256`: the agent then looks only "
        "at callers that match these.",
        retriable=True,
    ),
    "cgroup_ambiguous": Reason(
        "Hierarchies of control groups name different pods, or only some of them name one. Find "
        "out what moved the process."
    ),
    "cgroup_not_the_kubelets": Reason(
        "The process is in a control group that has a pod's name but that the kubelet did not "
        "make. If the pod is real, set `node.kubernetes.cgroup_root` or `runtime_cgroup`.",
    ),
    "cgroup_unreadable": Reason(
        "`/proc` hides the process (`hidepid`), the agent has no descriptors left, or the file has "
        "a form that no kernel writes.",
        retriable=True,
    ),
    "no_match": Reason(
        "`sds whoami --socket PATH`, run as the workload, shows what the agent found; add or "
        "correct a rule.",
    ),
    "undetermined": Reason(
        "This passes when the kubelet or the API server answers again.",
        retriable=True,
    ),
    "unknown_connection": Reason(
        "Ask again on a new connection to the node-wide socket; this one has ended."
    ),
    "connection_limit": Reason(
        "Find the client that opens so many connections, or raise `node.connections_per_owner` or "
        "`node.connections`, as the message says.",
        retriable=True,
    ),
    "connection_rate": Reason(
        "More connections arrive than the agent can handle, and this process, pod or user opens "
        "more than its share (a process 128 at once and 20 a second). Keep connections open, or "
        "find out who opens so many. gRPC clients connect again by themselves.",
        retriable=True,
    ),
    "cri_unavailable": Reason(
        "Check `node.cri.socket` (of `sds admission`: `runtime.socket`), that the runtime is up, "
        "and that the process may open the socket.",
        retriable=True,
    ),
    "cri_late": Reason(
        "The runtime gave no answer about one container or sandbox in time. If it answers about "
        "others, look for what keeps it from this one: its shim may stand still.",
        retriable=True,
    ),
    "cri_not_described": Reason(
        "The runtime lists something that it cannot describe now: it may just have ended. The "
        "agent asks again every second. If the error stays, look at the runtime's log.",
        retriable=True,
    ),
    "cri_unknown_shape": Reason(
        "The runtime describes containers in a form that this version does not know, or a "
        "description has more than 16 MiB. Tested: containerd 1.6 and 2.1.",
    ),
    "cri_unseen": Reason(
        "This passes as soon as the runtime lists the caller's container.",
        retriable=True,
    ),
    "cri_other_namespaces": Reason(
        "The process is in a container's control group but not in its namespaces. If nobody moved "
        "the process, it made namespaces of its own: serve it by another rule.",
    ),
    "cri_not_listed": Reason(
        "Compare with `sds policy pod`: something in the pod is not in its list.",
    ),
    "admission_not_listed": Reason(
        "No signed rule under `pods:` lists it, so `sds admission` refused it (with `enforce: "
        "false` it ran). Compare the digest in the message with `sds policy pod --lines`, and sign "
        "a new epoch.",
    ),
    "admission_form": Reason(
        "The message names the part. A terminal and open standard input are never admitted; nor is "
        "what `sds admission` does not understand, or whose sandbox it has not admitted.",
    ),
    "kubelet": Reason(
        "Check the kubelet's address and certificate and the agent's RBAC (`get` on `nodes/pods`).",
        retriable=True,
    ),
    "kubernetes_api": Reason(
        "Check the agent's service account and RBAC.",
        retriable=True,
    ),
    "other_pod": Reason(
        "A process used the socket of another pod's CSI volume. Find out who passed the socket on.",
    ),
    "csi_volume": Reason(
        "Declare the volume as `csi: {driver: …, readOnly: true}` in the pod; the message says "
        "what is wrong.",
    ),
}
