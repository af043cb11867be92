"""Checks that containerd and the kubelet leave no way around the wrapper.

Owns the checks of their configuration files, which belong in the measured image. Invariant: a
setting that a check does not know is a finding, not a pass. docs/kubernetes.md lists what these
files cannot show.

Sources: containerd ``docs/cri/config.md`` (1.6, 1.7, 2.x); ``KubeletConfiguration`` of
kubelet.config.k8s.io/v1beta1.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, Final

from sds.admission.script import script_findings
from sds.errors import ConfigurationError
from sds.settings import yamlfile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sds.admission.settings import AdmissionConfig

_RUNC: Final = "io.containerd.runc.v2"
_CRI: Final = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
_OLD: Final = ("default_runtime", "untrusted_workload_runtime")
_OFF: Final = {"enableDebuggingHandlers": "exec, attach, port-forward, run and logs"}
_STREAMING: Final = "127.0.0.1"


def check_node(config: AdmissionConfig) -> tuple[str, ...]:
    """Return, in words, what lets a container bypass the wrapper; empty if nothing was found.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    found = list(script_findings(config))
    if config.containerd_config is not None:
        content = yamlfile.read(config.containerd_config)
        found += containerd_findings(
            parse_toml(content, config.containerd_config), wrapper=config.wrapper
        )
    if config.kubelet_config is not None:
        where = str(config.kubelet_config)
        parsed = yamlfile.parse(yamlfile.read(config.kubelet_config), what=where)
        found += kubelet_findings(parsed)
    return tuple(found)


def parse_toml(content: bytes, where: Path) -> dict[str, Any]:
    """Decode containerd's configuration.

    Raises:
        ConfigurationError: the content is not TOML.
    """
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where} is not TOML: {error}") from error


def containerd_findings(config: Mapping[str, Any], *, wrapper: str) -> Iterator[str]:
    """Return what in containerd's configuration lets a container bypass the wrapper.

    Args:
        config: containerd's configuration, decoded.
        wrapper: the path of the wrapper.
    """
    if config.get("imports"):
        yield "containerd: imports: other files are not checked; write everything into one"
    plugins = _table(config, "plugins")
    sections = [_table(plugins, name) for name in _CRI if name in plugins]
    if not sections:
        yield f"containerd: no section of {' or '.join(_CRI)}: its defaults execute runc itself"
    for section in sections:
        containerd = _table(section, "containerd")
        runtimes = _table(containerd, "runtimes")
        default = str(containerd.get("default_runtime_name", "runc"))
        if default not in runtimes:
            yield f"containerd: the default handler {default!r} is not configured"
        if "runc" not in runtimes:
            yield "containerd: the handler 'runc' is built in, and is not configured"
        for name in _OLD:
            if _table(containerd, name).get("runtime_type"):
                yield f"containerd: {name} is a handler of its own: remove it"
        for name in runtimes:
            yield from _handler(name, _table(runtimes, name), wrapper)
        address = section.get("stream_server_address", _STREAMING)
        if address != _STREAMING:
            yield f"containerd: stream_server_address is {address!r}, not {_STREAMING!r}"


def _handler(name: str, handler: Mapping[str, Any], wrapper: str) -> Iterator[str]:
    kind = handler.get("runtime_type")
    if kind != _RUNC or handler.get("runtime_path"):
        yield (
            f"containerd: the handler {name!r} is of the kind {kind!r}, which executes no OCI "
            f"runtime that could be wrapped: remove it, or use {_RUNC!r}"
        )
        return
    binary = _table(handler, "options").get("BinaryName")
    if binary != wrapper:
        yield f"containerd: the handler {name!r} executes {binary or 'runc'!r}, not {wrapper!r}"


def kubelet_findings(config: Any) -> Iterator[str]:
    """Return what in the kubelet's configuration affects containers without the OCI runtime.

    Args:
        config: the ``KubeletConfiguration``, decoded.
    """
    if not isinstance(config, dict) or config.get("kind") != "KubeletConfiguration":
        yield "kubelet: the file is not a KubeletConfiguration"
        return
    for name, what in _OFF.items():
        if config.get(name) is not False:
            yield f"kubelet: {name} must be false: {what} reach a container's process"
    if config.get("readOnlyPort", 0) != 0:
        yield "kubelet: readOnlyPort must be 0"
    if config.get("enableDebugFlagsHandler") or config.get("enableProfilingHandler"):
        yield "kubelet: enableDebugFlagsHandler and enableProfilingHandler must be false"


def _table(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, dict) else {}
