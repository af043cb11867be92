"""Defines the base of every settings model and the types of its fields.

Invariant: a valid value has the domain's own type (``SpiffeId``, ``timedelta``, bytes), so that no
later code parses text again. Refusals say what a good value looks like.
"""

from __future__ import annotations

import functools
import re
import typing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from sds.errors import SdsError
from sds.identity import SpiffeId, TrustDomain, parse_dns_name, parse_trust_domain
from sds.rules.duration import SCHEMA as DURATION_SCHEMA
from sds.rules.duration import format_duration, parse_duration
from sds.rules.glob import Glob
from sds.rules.pattern import (
    format_dns_pattern,
    format_spiffe_pattern,
    parse_dns_pattern,
    parse_spiffe_pattern,
)
from sds.settings.https_url import check_host
from sds.settings.model_fields import members
from sds.settings.paths import parse_absolute, parse_path

if TYPE_CHECKING:
    from collections.abc import Callable

_Value = TypeVar("_Value")

_SIZE: Final = re.compile(r"(\d+)(|B|KiB|MiB|GiB)", re.ASCII)
_SIZES: Final = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_NUMBERS: Final = re.compile(r"[0-9.]+", re.ASCII)
_MAX_DIGITS: Final = 12
_NO_VALUE: Final = (
    "expected a value, found nothing: write one, or leave the whole field out if that is meant"
)


FROM_A_FILE: Final = object()
"""The context in which a model is validated if a person wrote the values."""


class Written(BaseModel):
    """The base of every model that a person writes.

    An optional field without a value is refused, because its entries may be commented out, or a
    template left it empty: ``policy:`` would start an agent that no signed policy binds. So is true
    or false in place of a number.
    """

    @model_validator(mode="before")
    @classmethod
    def _has_values(cls, data: Any, info: ValidationInfo) -> Any:
        if info.context is FROM_A_FILE and isinstance(data, dict) and None in data.values():
            for name, field in cls.model_fields.items():
                written = field.alias or name
                if field.default is None and data.get(written, "") is None:
                    raise ValueError(f"{written}: {_NO_VALUE}")
        return data

    @model_validator(mode="before")
    @classmethod
    def _has_numbers(cls, data: Any, info: ValidationInfo) -> Any:
        if info.context is FROM_A_FILE and isinstance(data, dict):
            for name, value in data.items():
                if isinstance(value, bool) and name in _numbers(cls):
                    raise ValueError(f"{name}: expected a number, found {str(value).lower()}")
        return data


@functools.cache
def _numbers(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a model that are numbers, for which pydantic takes true as 1."""
    return frozenset(
        field.alias or name
        for name, field in model.model_fields.items()
        if bool not in (kinds := set(members(field.annotation))) and any(map(_is_number, kinds))
    )


def _is_number(kind: Any) -> bool:
    one_of = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    return kind in {int, float} or any(isinstance(each, int) for each in one_of)


class Settings(Written):
    """The base of every model that a configuration file is read into."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


def parse_size(text: str) -> int:
    """Parse a size such as ``65536``, ``64KiB`` or ``4MiB``, and return it in bytes.

    Raises:
        ValueError: it has another form, or is not positive.
    """
    matched = _SIZE.fullmatch(text)
    if matched is None or len(matched[1]) > _MAX_DIGITS or not int(matched[1]):
        raise ValueError("expected a size above 0 such as 65536, 64KiB or 4MiB")
    return int(matched[1]) * _SIZES[matched[2]]


def text_field(parse: Callable[[str], _Value], *made: type[_Value]) -> Callable[[Any], _Value]:
    """Make a validator that accepts text only and fails with the texts of our own errors.

    Give it to ``PlainValidator`` for a type of the domain; a value that is ``made`` already passes
    unchanged.
    """

    def validate(value: Any) -> _Value:
        if made and isinstance(value, made):
            return value
        if not isinstance(value, str):
            raise ValueError("expected text")  # noqa: TRY004  pydantic collects ValueError only
        try:
            return parse(value)
        except SdsError as error:
            raise ValueError(str(error)) from error

    return validate


def _certificate_name(text: str) -> str:
    name = parse_dns_name(text)
    if _NUMBERS.fullmatch(name):
        raise ValueError("expected a DNS name: no peer finds an IP address among DNS names")
    return name


def _server_name(text: str) -> str:
    check_host(text, bracketed=":" in text)
    return text


def _size(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return text_field(parse_size)(value)
    return value


MOST: Final = 2**31 - 1
"""The largest number that libraries in C accept (gRPC's options, descriptors)."""
Count = Annotated[int, Field(ge=1, le=MOST)]
"""A number of things, at least one."""
Duration = Annotated[
    timedelta,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration),
    WithJsonSchema(dict(DURATION_SCHEMA)),
]
"""A positive duration, written as :func:`sds.rules.duration.parse_duration` says."""
Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
"""A positive number of bytes, written as a number or as :func:`parse_size` says."""
SpiffeIdField = Annotated[
    SpiffeId,
    PlainValidator(text_field(SpiffeId.parse, SpiffeId)),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": "^spiffe://"}),
]
"""A SPIFFE ID, parsed."""
TrustDomainField = Annotated[
    TrustDomain,
    PlainValidator(text_field(parse_trust_domain)),
    WithJsonSchema({"type": "string", "pattern": "^[a-z0-9._-]{1,255}$"}),
]
"""A trust domain's name."""
SpiffePattern = Annotated[
    Glob,
    PlainValidator(text_field(parse_spiffe_pattern, Glob)),
    PlainSerializer(format_spiffe_pattern),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^spiffe://[a-z0-9._-]+(/.*)?$",
            "description": "SPIFFE ID; * for (the rest of) one segment, ** at the end for more",
        }
    ),
]
"""A pattern of SPIFFE IDs, parsed."""
DnsPattern = Annotated[
    Glob,
    PlainValidator(text_field(parse_dns_pattern, Glob)),
    PlainSerializer(format_dns_pattern),
    WithJsonSchema(
        {
            "type": "string",
            "description": "DNS name; * for (the rest of) one label, ** at the start for more",
        }
    ),
]
"""A pattern of DNS names, parsed."""
DnsNameField = Annotated[str, PlainValidator(text_field(parse_dns_name))]
"""A DNS name that may be in a certificate."""
ServerName = Annotated[str, AfterValidator(_server_name)]
"""The name in a server's certificate: a DNS name, in any case, or an IP address."""
CertificateDnsName = Annotated[str, PlainValidator(text_field(_certificate_name))]
"""A DNS name and not an IP address: no peer finds an IP address among a certificate's names."""
AbsolutePath = Annotated[str, AfterValidator(parse_absolute)]
"""An absolute path as other programs write it, because it is compared as text."""
PathField = Annotated[Path, PlainValidator(text_field(parse_path, Path))]
"""A path, as written (relative ones count from the working directory)."""
