"""Moments as people write them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from sds.rules.moment import parse_moment


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T12:00:00Z",
        "2026-01-31t12:00:00z",
        "2026-01-31 12:00Z",
        "2026-01-31T13:00:00.000+01:00",
        "2026-01-31T06:30:00-05:30",
    ],
)
def test_one_moment_in_many_forms(text: str) -> None:
    found = parse_moment(text)
    assert found == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert found.tzinfo is UTC


def test_a_moment_passes_in_utc() -> None:
    there = datetime(2026, 1, 31, 13, tzinfo=timezone(timedelta(hours=1)))
    assert parse_moment(there).isoformat() == "2026-01-31T12:00:00+00:00"


@pytest.mark.parametrize(
    "value",
    [
        20270101,  # a date without its dashes would be a moment in 1970
        "20270101",
        1893456000,
        1.5,
        True,
        None,
        "",
        "tomorrow",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-01-31T25:00:00Z",
        "2026-W05-6T12:00:00Z",
        "20260131T120000Z",
        "2026-01-31T12:00:00+25:00",
        "2026-01-31T12:00:00 Z",
        "٢026-01-31T12:00:00Z",
        datetime(2026, 1, 31, 12),  # noqa: DTZ001  it has no offset
    ],
)
def test_anything_else_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match="such as 2026-01-31T12:00:00Z"):
        parse_moment(value)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_moment_outside_of_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="outside of the years"):
        parse_moment(text)
