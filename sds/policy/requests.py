"""The requests that a rule allows: methods, paths, hosts and ports, and how each is matched.

Owns :class:`RequestPattern`, and the conditions that Envoy gets for it (:func:`path_match`,
:func:`host_regex`). A path's pattern is a :class:`sds.rules.pattern.Glob` over its segments:
``/orders`` is this path alone, ``/orders/*`` one segment below it, ``/orders/v*`` one segment that
starts so, and ``/orders/**`` everything that begins with ``/orders/``.

Invariants: a rule only allows, so a pattern does not match in case of doubt; a star stands for
plain characters only, never for ``;``, a backslash, a dot segment, or an escape of one of them, of
``/``, ``%`` or a control character, because servers interpret those differently; matching here and
in Envoy uses the same expressions.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.errors import IdentityError
from sds.rules.glob import Glob
from sds.rules.pattern import format_dns_pattern, parse_dns_pattern

if TYPE_CHECKING:
    from collections.abc import Iterable

PLAIN_REGEX: Final = (
    r"(?:[!$&-:=@A-Z_a-z~]|%(?:2[0-46-9A-Da-d]|3[0-9AC-Fac-f]|5[0-9ABD-Fabd-f]|7[0-9A-Ea-e]"
    r"|[4689ABDEFabdef][0-9A-Fa-f]|[Cc][2-9A-Fa-f]))*"
)
"""RE2, matched as a whole: a path of plain characters (RFC 3986, section 3.3, without ``;``, and
without escapes of control characters, of ``% . / ; \\`` and of bytes that UTF-8 never has)."""

DOTS_REGEX: Final = r"(?:.*/)?\.\.?(?:/.*)?"
"""RE2, matched as a whole: a path with a dot segment (RFC 3986, section 3.3)."""

_ANY: Final = "[!-.0-~]"
_REST: Final = "**"
_MAX_PATH: Final = 1024
_MAX_SIZE: Final = 95
"""The largest expression by :func:`_size`: Envoy 1.36 to 1.40 refuse those that compile to more
than 100 instructions (``re2.max_program_size.error_level``), about one for each character."""
_LITERAL: Final = re.compile(PLAIN_REGEX, re.ASCII)
_METHOD: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as Envoy's filters see it, after normalization.

    Attributes:
        method: the method in upper case.
        path: the path without query and fragment.
        host: the ``:authority``, with a port if one was given.
        port: the port of the server's listener; None if it does not matter.
    """

    method: str = "GET"
    path: str = "/"
    host: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathMatch:
    """One condition on a path; a path's pattern is one or several, all of which must match.

    Attributes:
        kind: ``exact`` or ``prefix`` (of text), ``regex`` (RE2, matched as a whole), or
            ``not_regex`` (which must not match).
        value: the text or the expression.
    """

    kind: str
    value: str

    def matches(self, path: str) -> bool:
        """Say whether this condition is met."""
        match self.kind:
            case "exact":
                return path == self.value
            case "prefix":
                return path.startswith(self.value)
            case "regex":
                return _compiled(self.value).fullmatch(path) is not None
            case _:
                return _compiled(self.value).fullmatch(path) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPattern:
    """Requests that are allowed together: each part that is not empty must match.

    Attributes:
        methods: HTTP methods in upper case.
        paths: patterns, as :func:`parse_path_pattern` makes them.
        hosts: patterns of DNS names; case, port and one final dot of the request do not count.
        ports: ports of the server's listener, for HTTP and TCP.
    """

    methods: tuple[str, ...] = ()
    paths: tuple[Glob, ...] = ()
    hosts: tuple[Glob, ...] = ()
    ports: tuple[int, ...] = ()

    @property
    def is_http(self) -> bool:
        """Say whether only an HTTP filter can check it; then it allows nothing to a TCP filter."""
        return bool(self.methods or self.paths or self.hosts)

    def matches(self, request: Request) -> bool:
        """Say whether this request is allowed."""
        return (
            (not self.methods or request.method in self.methods)
            and (not self.ports or request.port in self.ports)
            and (not self.hosts or any(host_matches(glob, request.host) for glob in self.hosts))
            and (not self.paths or any(path_matches(glob, request.path) for glob in self.paths))
        )

    def __str__(self) -> str:
        """Return text for people: ``GET,HEAD /orders/* on shop.example.org port 8443``.

        Unequal patterns have unequal texts, because texts name rules: a comma in a path has a
        backslash before it, which no path has.
        """
        words = []
        if self.methods:
            words.append(",".join(self.methods))
        if self.paths:
            paths = (format_path_pattern(glob).replace(",", r"\,") for glob in self.paths)
            words.append(",".join(paths))
        if self.hosts:
            words.append("on " + ",".join(format_dns_pattern(glob) for glob in self.hosts))
        if self.ports:
            words.append("port " + ",".join(map(str, self.ports)))
        return " ".join(words) or "everything"


def parse_method(text: str) -> str:
    """Parse an HTTP method (RFC 9110, section 9.1): upper case, because methods are case-sensitive.

    Raises:
        IdentityError: it does not have this form.
    """
    if not _METHOD.fullmatch(text):
        raise IdentityError(
            f"{text[:80]!r} is not an HTTP method", advice="write it in upper case: GET, POST"
        )
    return text


# --- paths --------------------------------------------------------------------------------------


def path_parts(path: str) -> tuple[str, ...]:
    """Split a path that begins with ``/`` into segments; ``/`` has one, which is empty."""
    return tuple(path.split("/")[1:])


def parse_path_pattern(text: str) -> Glob:
    """Parse a pattern of paths, such as ``/orders``, ``/orders/*/items`` or ``/static/**``.

    Raises:
        IdentityError: it is not a normalized path with stars at the places that the module names,
            or the part after the first star is too long for Envoy.
    """
    advice = (
        "write a path as servers see it after normalization: it begins with '/', without '//', "
        "'.', '..', ';', '?', '#' and escapes of those; 'text*' or '*' for one segment, '**' for "
        "everything below, only at the end"
    )
    shown = repr(text[:300])
    if not text.startswith("/") or len(text) > _MAX_PATH:
        raise IdentityError(
            f"the path pattern {shown} does not begin with '/', or has more than {_MAX_PATH} "
            "characters",
            advice=advice,
        )
    segments = list(path_parts(text))
    rest = segments[-1] == _REST
    if rest:
        segments.pop()
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1 and not rest
        literal = segment.removesuffix("*")
        wrong = (
            (not segment and not last)
            or "*" in literal
            or literal in {".", ".."}
            or not _LITERAL.fullmatch(literal)
        )
        if wrong:
            raise IdentityError(
                f"the path pattern {shown} has the segment {segment[:80]!r}, which is not valid",
                advice=advice,
            )
    glob = Glob(tuple(segments), rest)
    for one in path_match(glob):
        if "regex" in one.kind and one.value not in _SHARED and _size(one.value) > _MAX_SIZE:
            raise IdentityError(
                f"the path pattern {shown} is too long after its first star",
                advice="Envoy takes short expressions only: use '**' earlier, or several patterns",
            )
    return glob


def format_path_pattern(glob: Glob) -> str:
    """Return the pattern as text; :func:`parse_path_pattern` gives the same pattern back."""
    return "/" + "/".join((*glob.parts, _REST) if glob.rest else glob.parts)


@functools.lru_cache(maxsize=4096)
def path_match(glob: Glob) -> tuple[PathMatch, ...]:
    """Return the conditions on a path, without query and fragment, that make up the pattern."""
    if glob.is_literal:
        return (PathMatch(kind="exact", value=format_path_pattern(glob)),)
    first = next((n for n, part in enumerate(glob.parts) if part.endswith("*")), len(glob.parts))
    head = "".join(f"/{part}" for part in glob.parts[:first]) + "/"
    if first < len(glob.parts):
        head += glob.parts[first].removesuffix("*")
    conditions = [PathMatch(kind="prefix", value=head)]
    if first < len(glob.parts):
        tail = "".join(_part_regex(part) for part in glob.parts[first:])
        before = f"(?:/{_ANY}+){{{first}}}" if first else ""
        conditions.append(
            PathMatch(kind="regex", value=before + tail + ("/.*" if glob.rest else ""))
        )
    return (*conditions, *_PLAIN_PATH)


_PLAIN_PATH: Final = (
    PathMatch(kind="regex", value=PLAIN_REGEX),
    PathMatch(kind="not_regex", value=DOTS_REGEX),
)
_SHARED: Final = {PLAIN_REGEX, DOTS_REGEX}


def path_matches(glob: Glob, path: str) -> bool:
    """Say whether this path, normalized and without query, matches."""
    return all(condition.matches(path) for condition in path_match(glob))


def _part_regex(part: str) -> str:
    if not part.endswith("*"):
        return "/" + re.escape(part)
    return "/" + re.escape(part[:-1]) + _ANY + ("+" if part == "*" else "*")


def _size(regex: str) -> int:
    """Return an upper estimate of the size of a compiled expression, with classes and counts."""
    counted = re.search(r"\){(\d+)}", regex)
    repeated = int(counted[1]) if counted else 0
    return len(regex.replace("\\", "")) + repeated * 6


@functools.lru_cache(maxsize=4096)
def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex, re.ASCII)


# --- hosts --------------------------------------------------------------------------------------


def parse_host_pattern(text: str) -> Glob:
    """Parse a pattern of hosts: a DNS name with stars, as in :mod:`sds.rules.pattern`.

    Raises:
        IdentityError: it is not such a pattern, or is too long for Envoy.
    """
    glob = parse_dns_pattern(text)
    if _size(host_regex(glob)) > _MAX_SIZE:
        raise IdentityError(
            f"the host pattern {text[:300]!r} is too long",
            advice="Envoy takes short expressions only: use '**' in place of the first labels",
        )
    return glob


def host_regex(glob: Glob) -> str:
    """Return a regular expression (RE2) for ``:authority``: any case, port and one final dot."""
    labels = [
        re.escape(part[:-1]) + "[a-z0-9_-]" + ("+" if part == "*" else "*")
        if part.endswith("*")
        else re.escape(part)
        for part in reversed(glob.parts)
    ]
    rest = r"(?:[a-z0-9_-]+\.)+" if glob.rest else ""
    return "(?i)" + rest + r"\.".join(labels) + r"\.?(?::[0-9]{1,5})?"


def host_matches(glob: Glob, host: str) -> bool:
    """Say whether the ``:authority`` of a request matches."""
    return _compiled(host_regex(glob)).fullmatch(host) is not None


def matches_any(patterns: Iterable[RequestPattern], request: Request) -> bool:
    """Say whether one of the patterns matches; no pattern at all matches every request."""
    listed = tuple(patterns)
    return not listed or any(pattern.matches(request) for pattern in listed)
