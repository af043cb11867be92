"""Converts Istio's policies of a whole mesh to the ``allow`` rules of one policy document.

Owns :func:`convert`. Invariants: the rules never allow more than the manifests did; every field
that cannot be expressed is a finding with its place. Then an ALLOW policy loses the rule; a DENY
policy loses only the field, so that more is denied.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from sds.errors import ConfigurationError
from sds.policy.istio.atoms import Atom, Denial, remainder
from sds.policy.istio.conditions import Conditions
from sds.policy.istio.manifests import Spot, workloads_of
from sds.policy.istio.rules import LOCAL, CannotSayError, Names
from sds.policy.requests import RequestPattern, format_path_pattern
from sds.rules.glob import Glob
from sds.rules.pattern import format_dns_pattern, format_spiffe_pattern

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sds.identity import TrustDomain
    from sds.policy.istio.manifests import Finding, Manifest, Spot

_MOST_ATOMS: Final = 100_000
_OPPOSITE: Final = {"always": "never", "never": "always"}
_SILENT: Final = frozenset(
    {
        *("Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"),
        *("Service", "ServiceAccount", "Namespace", "ConfigMap", "Secret"),
    }
)


@dataclass(slots=True, kw_only=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        allow: the rules as a policy document has them.
        findings: what was not expressed, in the order of the files.
    """

    allow: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def convert(
    manifests: Sequence[Manifest],
    *,
    trust_domain: TrustDomain,
    root_namespace: str = "istio-system",
) -> Conversion:
    """Convert the manifests of one mesh.

    Args:
        manifests: AuthorizationPolicy and PeerAuthentication, and the workloads that their
            selectors select.
        trust_domain: the mesh's trust domain; principals may write ``cluster.local`` for it.
        root_namespace: the namespace in which a policy without a selector applies to the whole
            mesh.

    Raises:
        ConfigurationError: labels are not a mapping, no SPIFFE ID can contain the name of a
            namespace or account, or the denials cut the rest into too many parts.
    """
    names = Names(trust_domain=trust_domain, foreign=_foreign(manifests, trust_domain))
    try:
        return _Converter(manifests, names, root_namespace).run()
    except CannotSayError as error:
        raise ConfigurationError(f"these manifests cannot be converted: {error}") from error


def _foreign(manifests: Sequence[Manifest], own: TrustDomain) -> tuple[str, ...]:
    """Return the trust domains that principals name beside the mesh's own."""
    found = set()
    for manifest in manifests:
        for rule in manifest.root.at("spec", "rules").items():
            for entry in rule.get("from").items():
                for principal in entry.at("source", "principals").items():
                    domain, slash, _ = str(principal.value).partition("/")
                    if slash and "*" not in domain and domain not in {own, LOCAL}:
                        found.add(domain)
    return tuple(sorted(found))


class _Converter:
    def __init__(self, manifests: Sequence[Manifest], names: Names, root: str) -> None:
        self._manifests = manifests
        self._names = names
        self._root = root
        self._workloads = workloads_of(manifests)
        self._findings: list[Finding] = []
        self._conditions = Conditions(names, self._findings)

    def run(self) -> Conversion:
        atoms: list[Atom] = []
        denials: list[Denial] = []
        restricted: list[Glob] = []
        for manifest in self._manifests:
            if manifest.kind == "AuthorizationPolicy":
                self._authorization(manifest, atoms, denials, restricted)
            elif manifest.kind == "PeerAuthentication":
                self._peer_authentication(manifest)
            elif manifest.kind not in _SILENT:
                self._find(manifest.root, f"{manifest.title} is not converted", narrows=False)
        atoms += self._open(restricted)
        for denial in denials:
            atoms = [left for atom in atoms for left in remainder(atom, denial)]
            if len(atoms) > _MOST_ATOMS:
                raise CannotSayError("the denials cut the allowed requests into too many parts")
        return Conversion(allow=list(_written(atoms)), findings=self._findings)

    def _find(self, spot: Spot, text: str, *, narrows: bool = True) -> None:
        self._findings.append(spot.finding(text, narrows=narrows))

    # --- one policy -----------------------------------------------------------------------------

    def _authorization(
        self,
        manifest: Manifest,
        atoms: list[Atom],
        denials: list[Denial],
        restricted: list[Glob],
    ) -> None:
        spec = manifest.root.get("spec")
        action = str(spec.get("action").value or "ALLOW")
        if action == "AUDIT":
            self._find(
                spec.get("action"),
                f"{manifest.title}: AUDIT only logs and changes nothing that is allowed; use "
                "Envoy's access log, or requests_enforce: false to count",
                narrows=False,
            )
            return
        if action not in {"ALLOW", "DENY", "CUSTOM"}:
            self._find(spec.get("action"), f"{manifest.title}: unknown action {action!r}")
            action = "DENY"
        if action == "CUSTOM":
            self._find(
                spec.get("action"),
                f"{manifest.title}: CUSTOM asks a server of yours, which cannot be expressed; what "
                "it could have denied is denied",
            )
        targets, exact = self._targets(manifest, spec)
        listed = list(spec.get("rules").items())
        if action == "ALLOW":
            restricted += targets
            if not exact:
                self._find(spec, f"{manifest.title} is left out: its workloads are not known")
                return
            for rule in listed:
                atoms += self._allowed(manifest, rule, targets)
            return
        for rule in listed:
            denials += [
                Denial(targets=tuple(targets), conditions=conditions)
                for conditions in self._conditions.of(manifest, rule, denies=True)
            ]

    def _targets(self, manifest: Manifest, spec: Spot) -> tuple[list[Glob], bool]:
        """Return whom it applies to, and whether that is exact (else it is wider)."""
        namespace = "*" if manifest.namespace == self._root else manifest.namespace
        whole = [self._names.target(namespace)]
        for name in ("targetRef", "targetRefs"):
            if spec.get(name).value is not None:
                self._find(
                    spec.get(name),
                    f"{manifest.title}: {name} cannot be expressed, because a rule names workloads",
                )
                return whole, False
        selector = spec.get("selector")
        wanted = selector.get("matchLabels").labels()
        if not wanted:
            return whole, True
        here = [one for one in self._workloads if namespace in {"*", one.namespace}]
        selected = [one for one in here if one.is_selected(wanted)]
        shown = ",".join(f"{name}={value}" for name, value in wanted.items())
        if not selected:
            self._find(
                selector,
                f"{manifest.title}: no workload in the files has the labels {shown}, and rules "
                "name service accounts; add its manifest",
            )
            return whole, False
        accounts = {(one.namespace, one.account) for one in selected}
        shared = [
            one for one in here if (one.namespace, one.account) in accounts and one not in selected
        ]
        if shared:
            self._find(
                selector,
                f"{manifest.title}: the labels {shown} select some of the workloads of the account "
                f"{shared[0].namespace}/{shared[0].account}, which rules cannot tell apart; give "
                "them accounts of their own",
            )
        globs = [self._names.target(*account) for account in sorted(accounts)]
        return globs, not shared

    def _open(self, restricted: list[Glob]) -> Iterator[Atom]:
        """Yield permissions for everything to workloads without an ALLOW policy, as in Istio."""
        seen: set[Glob] = set()
        for workload in self._workloads:
            target = self._names.target(workload.namespace, workload.account)
            if target not in seen and not any(one.intersection(target) for one in restricted):
                seen.add(target)
                yield Atom(source=Glob((self._names.trust_domain,), rest=True), target=target)

    # --- one rule -------------------------------------------------------------------------------

    def _allowed(self, manifest: Manifest, rule: Spot, targets: list[Glob]) -> Iterator[Atom]:
        for conditions in self._conditions.of(manifest, rule, denies=False):
            # The rule allows what a denial of everything else leaves.
            atoms = [
                Atom(source=Glob((domain,), rest=True), target=target)
                for domain in (self._names.trust_domain, *self._names.foreign)
                for target in targets
            ]
            named = any(condition.what == "source" for condition in conditions)
            if not named:
                atoms = [one for one in atoms if one.source.parts[0] == self._names.trust_domain]
            for condition in conditions:
                opposite = replace(condition, negated=not condition.negated)
                if condition.what in {"always", "never"}:
                    opposite = replace(condition, what=_OPPOSITE[condition.what])
                denial = Denial(targets=tuple(targets), conditions=(opposite,))
                atoms = [left for atom in atoms for left in remainder(atom, denial)]
            yield from atoms

    def _peer_authentication(self, manifest: Manifest) -> None:
        spec = manifest.root.get("spec")
        modes = [spec.at("mtls", "mode")]
        modes += [port.get("mode") for _, port in spec.get("portLevelMtls").fields()]
        for mode in modes:
            if str(mode.value) in {"PERMISSIVE", "DISABLE"}:
                self._find(
                    mode,
                    f"{manifest.title}: {mode.value} cannot be expressed, because every connection "
                    "is mTLS here; clients without a certificate are refused",
                )


def _written(atoms: list[Atom]) -> Iterator[dict[str, Any]]:
    """Write the atoms as few rules, in the form of a policy document."""
    by_pair: dict[tuple[Glob, Glob], dict[RequestPattern, None]] = {}
    for atom in atoms:
        by_pair.setdefault((atom.source, atom.target), {})[atom.request] = None
    grouped: dict[tuple[Glob, tuple[RequestPattern, ...]], list[Glob]] = {}
    for (source, target), patterns in by_pair.items():
        requests = () if RequestPattern() in patterns else tuple(patterns)
        grouped.setdefault((target, requests), []).append(source)
    for (target, requests), sources in grouped.items():
        rule: dict[str, Any] = {
            "from": [format_spiffe_pattern(one) for one in sources],
            "to": [format_spiffe_pattern(target)],
        }
        if requests:
            rule["requests"] = [_request(one) for one in requests]
        yield rule


def _request(pattern: RequestPattern) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "methods": list(pattern.methods),
        "paths": [format_path_pattern(one) for one in pattern.paths],
        "hosts": [format_dns_pattern(one) for one in pattern.hosts],
        "ports": list(pattern.ports),
    }
    return {name: values for name, values in fields.items() if values}
