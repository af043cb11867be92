"""Judges a published JSON Schema by the library jsonschema, an implementation of its own."""

from __future__ import annotations

import pytest


def check_schema(published: dict[str, object], *, accepts: object, refuses: object) -> None:
    """Check that ``published`` is a schema, that accepts one document, and refuses the other."""
    # To load it takes 2.6 s, which each worker of the suite would spend while it collects tests.
    import jsonschema  # noqa: PLC0415

    jsonschema.Draft202012Validator.check_schema(published)
    jsonschema.validate(accepts, published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(refuses, published)
