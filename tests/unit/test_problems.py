"""Which problems are worth a line of log."""

from __future__ import annotations

from sds.problems import Problems


def test_a_problem_that_lasts_is_news_once() -> None:
    problems = Problems()
    assert problems.is_news("no such file")
    assert not problems.is_news("no such file")
    assert problems.is_news("not readable")
    assert problems.is_news("no such file")


def test_things_have_problems_apart() -> None:
    problems = Problems()
    assert problems.is_news("empty", of="a")
    assert problems.is_news("empty", of="b")
    assert problems.over(of="a")
    assert not problems.over(of="a")
    assert problems.is_news("empty", of="a")
    assert not problems.is_news(ValueError("empty"), of="b")


def test_who_asks_is_told_again() -> None:
    problems = Problems()
    assert problems.is_news("empty")
    problems.tell_again()
    assert problems.now() == ("empty",)
    assert problems.is_news("empty")
    assert not problems.is_news("empty")
    assert problems.over()


def test_who_asks_learns_that_a_problem_is_over() -> None:
    problems = Problems()
    assert problems.is_news("empty")
    problems.tell_again()
    assert problems.over()
    assert problems.now() == ()
