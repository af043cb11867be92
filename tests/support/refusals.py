"""``with refused("reason")``: the block raises one of our errors with this reason."""

from __future__ import annotations

import pytest

from sds.errors import SdsError


def refused(*reasons: str, match: str | None = None) -> pytest.RaisesExc[SdsError]:
    """Expect an error whose reason is one of these."""
    return pytest.raises(SdsError, match=match, check=lambda error: error.reason in reasons)
