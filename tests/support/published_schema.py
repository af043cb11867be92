"""Judges a published JSON Schema by the library jsonschema, an implementation of its own."""

from __future__ import annotations

import sys
from unittest import mock

import pytest


def check_schema(published: dict[str, object], *, accepts: object, refuses: object) -> None:
    """Check that ``published`` is a schema, that accepts one document, and refuses the other."""
    # A library for one of its formats, which no schema of ours has, takes two seconds to load.
    with mock.patch.dict(sys.modules, {"rfc3987_syntax": None}):
        import jsonschema  # noqa: PLC0415

    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(accepts, published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(refuses, published)
