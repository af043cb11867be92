"""Converts one field of Istio's rules to our patterns, or says why it cannot be expressed.

Owns the mapping of names, hosts, paths, methods and ports
(https://istio.io/latest/docs/reference/config/security/authorization-policy/). In Istio a value is
exact, or has one star as its first or last character; a star there crosses ``/`` and ``.``.
Invariant: a pattern that is returned matches no name that Istio's value does not match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.errors import IdentityError
from sds.policy.requests import parse_host_pattern, parse_method, parse_path_pattern
from sds.rules.glob import Glob
from sds.rules.pattern import parse_spiffe_pattern

if TYPE_CHECKING:
    from sds.identity import TrustDomain

LOCAL: Final = "cluster.local"
"""Istio's name for the mesh's own trust domain, whatever that is called."""


class CannotSayError(ValueError):
    """Our rules cannot express it; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Writes names of the mesh as patterns.

    Attributes:
        trust_domain: the mesh's trust domain.
        foreign: other trust domains that some principal names.
    """

    trust_domain: TrustDomain
    foreign: tuple[str, ...] = ()

    def principal(self, text: str, *, denies: bool) -> list[Glob] | None:
        """Convert a value of ``principals`` to patterns of SPIFFE IDs; None means everybody.

        Raises:
            CannotSayError: no pattern expresses it.
        """
        if text == "*":
            return None if denies else [Glob((self.trust_domain,), rest=True)]
        if text.startswith("*"):
            if denies:
                raise CannotSayError(f"{text!r} is of any trust domain, and patterns have one")
            return [self._suffix(text[1:])]
        domain, slash, path = text.partition("/")
        if not slash or "*" in domain:
            raise CannotSayError(f"{text!r}: a pattern keeps its trust domain literal")
        return [self._parsed(text, self._domain(domain), path)]

    def namespace(self, text: str, *, denies: bool) -> list[Glob]:
        """Convert a value of ``namespaces``: every account of these namespaces."""
        if "*" in text[:-1]:
            raise CannotSayError(f"{text!r}: a star may only end a part")
        return self._everywhere(text, f"ns/{text}/sa/*", denies=denies)

    def account(self, text: str, namespace: str, *, denies: bool) -> list[Glob]:
        """Convert a value of ``serviceAccounts``: ``account`` or ``namespace/account``."""
        first, slash, second = text.partition("/")
        where, name = (first, second) if slash else (namespace, first)
        return self._everywhere(text, f"ns/{where}/sa/{name}", denies=denies)

    def _everywhere(self, text: str, path: str, *, denies: bool) -> list[Glob]:
        """Return the path in our trust domain and, for a denial, in every one that a rule names."""
        domains = (self.trust_domain, *(self.foreign if denies else ()))
        return [self._parsed(text, domain, path, closed=True) for domain in domains]

    def target(self, namespace: str, account: str = "*") -> Glob:
        """Return a pattern of the workloads of an account or namespace; ``*`` means every one."""
        return self._parsed(account, self.trust_domain, f"ns/{namespace}/sa/{account}", closed=True)

    def _domain(self, domain: str) -> str:
        return self.trust_domain if domain == LOCAL else domain

    def _suffix(self, rest: str) -> Glob:
        parts = rest.split("/")
        if parts[0] or len(parts) not in {3, 5} or parts[-2] != "sa" or not parts[-1]:
            raise CannotSayError(
                f"'*{rest}': a star may only end a part; '*/sa/NAME' can be converted"
            )
        path = rest.removeprefix("/") if len(parts) == 5 else f"ns/*{rest}"  # noqa: PLR2004
        return self._parsed(f"*{rest}", self.trust_domain, path, closed=True)

    def _parsed(self, text: str, domain: str, path: str, *, closed: bool = False) -> Glob:
        """Parse a name whose ``path`` may end in a star, which in Istio matches across ``/``."""
        if path.endswith("*") and not closed:
            *before, last = path.split("/")
            if last == "*":
                path = "/".join((*before, "**"))
            elif len(before) == 3:  # noqa: PLR2004  ns/NAMESPACE/sa/ACCOUNT: nothing comes after
                pass
            else:
                path = f"{path}/**"
        try:
            return parse_spiffe_pattern(f"spiffe://{domain}/{path}")
        except IdentityError as error:
            raise CannotSayError(f"{text!r}: {error.message}") from error


def paths(text: str) -> list[Glob] | None:
    """Convert a value of ``paths`` to patterns; None means every path.

    Raises:
        CannotSayError: no pattern expresses it.
    """
    if text in {"*", "/*"}:
        return None
    if text.startswith("*"):
        raise CannotSayError(f"{text!r}: a star may only end a segment")
    text = text.replace("{*}", "*")
    if text.endswith("{**}"):
        return [_path(text.removesuffix("{**}") + "**")]
    if "{" in text:
        raise CannotSayError(f"{text!r}: '{{**}}' may only come last")
    if not text.endswith("*") or "*" in text[:-1]:
        # It is exact, or a template whose star stands for one segment in both languages.
        return [_path(text)]
    if text.endswith("/*"):
        return [_path(text + "*")]
    return [_path(text), _path(f"{text}/**")]


def _path(text: str) -> Glob:
    try:
        return parse_path_pattern(text)
    except IdentityError as error:
        raise CannotSayError(error.message) from error


def host(text: str, *, denies: bool) -> Glob | None:
    """Convert a value of ``hosts`` to a pattern; None means every host."""
    if text == "*":
        return None
    plain, colon, port_ = text.lower().partition(":")
    if colon and port_ != "*" and not denies:
        raise CannotSayError(f"{text!r}: the port of a host does not count in a rule; use ports")
    if plain.startswith("*."):
        plain = f"*{plain}"
    elif "*" in plain:
        raise CannotSayError(f"{text!r}: a star may only stand for whole labels at the start")
    try:
        return parse_host_pattern(plain)
    except IdentityError as error:
        raise CannotSayError(error.message) from error


def method(text: str) -> str | None:
    """Convert a value of ``methods``; None means every method."""
    if text == "*":
        return None
    try:
        return parse_method(text)
    except IdentityError as error:
        raise CannotSayError(error.message) from error


def port(text: str) -> int:
    """Convert a value of ``ports``."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:  # noqa: PLR2004
        raise CannotSayError(f"{text!r} is not a port")
    return int(text)
