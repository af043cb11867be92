"""The types of the fields of a policy's rules.

Invariant: a valid value is parsed, so no code behind the model parses text again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictInt,
    WithJsonSchema,
)

from sds.policy.requests import (
    format_path_pattern,
    parse_host_pattern,
    parse_method,
    parse_path_pattern,
)
from sds.rules.glob import Glob
from sds.rules.moment import SCHEMA as MOMENT_SCHEMA
from sds.rules.moment import parse_moment
from sds.rules.pattern import format_dns_pattern
from sds.settings.field_types import SpiffePattern, Written, text_field


class PolicyModel(Written):
    """Base of every model in a policy document: frozen, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _listed(value: object) -> object:
    """Turn a single pattern into a list."""
    return [value] if isinstance(value, str) else value


Method = Annotated[
    str,
    PlainValidator(text_field(parse_method)),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z][A-Z0-9_-]{0,31}$"}),
]
PathPattern = Annotated[
    Glob,
    PlainValidator(text_field(parse_path_pattern)),
    PlainSerializer(format_path_pattern),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^/",
            "description": "path; * for (the rest of) one segment, ** at the end for all below",
        }
    ),
]
HostPattern = Annotated[
    Glob,
    PlainValidator(text_field(parse_host_pattern)),
    PlainSerializer(format_dns_pattern),
    WithJsonSchema({"type": "string", "description": "DNS name, with stars as in dns_names"}),
]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]
Moment = Annotated[datetime, PlainValidator(parse_moment), WithJsonSchema(dict(MOMENT_SCHEMA))]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$")]
Measurement = Annotated[str, Field(pattern=r"^([0-9a-f]{96}|[0-9a-f]{64})$")]
Patterns = Annotated[
    list[SpiffePattern],
    Field(min_length=1),
    BeforeValidator(_listed, json_schema_input_type=SpiffePattern | list[SpiffePattern]),
]
