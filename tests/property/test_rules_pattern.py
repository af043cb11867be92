"""Patterns: the index and the intersection agree with matching one by one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sds.rules.glob import Glob, GlobIndex

LITERAL = st.text("ab", min_size=1, max_size=3)
PART = st.one_of(LITERAL, LITERAL.map(lambda text: text + "*"), st.just("*"))
GLOBS = st.builds(
    Glob,
    st.tuples(st.sampled_from(["t", "u"]), st.lists(PART, max_size=3)).map(
        lambda pair: (pair[0], *pair[1])
    ),
    st.booleans(),
)
NAMES = st.tuples(st.sampled_from(["t", "u"]), st.lists(LITERAL, max_size=4)).map(
    lambda pair: (pair[0], *pair[1])
)


@given(st.lists(GLOBS, max_size=8), NAMES)
@settings(max_examples=400)
def test_the_index_finds_exactly_what_matches(globs: list[Glob], name: tuple[str, ...]) -> None:
    index: GlobIndex[int] = GlobIndex()
    for number, glob in enumerate(globs):
        index.add(glob, number)
    expected = [number for number, glob in enumerate(globs) if glob.matches(name)]
    assert sorted(index.find(name)) == expected


@given(GLOBS, GLOBS, NAMES)
@settings(max_examples=400)
def test_the_intersection_matches_what_both_match(
    left: Glob, right: Glob, name: tuple[str, ...]
) -> None:
    both = left.intersection(right)
    assert both == right.intersection(left)
    assert (both is not None and both.matches(name)) == (left.matches(name) and right.matches(name))


@given(GLOBS, GLOBS, NAMES)
def test_covering(left: Glob, right: Glob, name: tuple[str, ...]) -> None:
    if left.covers(right) and right.matches(name):
        assert left.matches(name)
