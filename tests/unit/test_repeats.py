from sds.repeats import Repeats


def test_the_first_is_said_and_then_one_in_an_interval_with_their_number() -> None:
    repeats = Repeats(interval=10)
    said = [repeats.due("a", now=now) for now in (0.0, 1.0, 9.9, 10.0, 11.0, 25.0)]
    assert said == [1, None, None, 3, None, 2]


def test_each_key_is_counted_apart() -> None:
    repeats = Repeats(interval=10)
    assert [repeats.due(key, now=0) for key in ("a", "b", "a")] == [1, 1, None]


def test_callers_cannot_fill_the_table() -> None:
    repeats = Repeats(interval=10, keys=3)
    said = [repeats.due(number, now=number / 1000) for number in range(1000)]
    assert said[:4] == [1, 1, 1, 1]
    assert set(said[4:]) == {None}
    assert len(repeats._said) == 4
    assert repeats.due("later", now=100.0) == 1
    assert len(repeats._said) == 1
