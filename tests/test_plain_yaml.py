"""YAML as configurations need it."""

from __future__ import annotations

import datetime

import pytest

from mer_batch.plain_yaml import MAX_DEPTH, read_yaml

BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: {b: [1, x, 2026-11-22]}", {"a": {"b": [1, "x", datetime.date(2026, 11, 22)]}}),
        ("a: {x: 1}\nb: {x: 1}", {"a": {"x": 1}, "b": {"x": 1}}),
        ("a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}", {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}}),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, None),
    ],
)
def test_values_are_read(text: str, value: object) -> None:
    found = read_yaml(text)
    assert value is None or found == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3", "key='a' must stand once, not in lines 1 and 3; take one of"),
        ("a:\n  b: 1\n  'b': 1", "key='b' must stand once, not in lines 2 and 3"),
        ("- {b: 1, b: 2}", "key='b' must stand once, not in lines 1 and 1"),
        ("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}", "key='y' must stand once"),
        ("[" * 200 + "]" * 200, "values must not be nested deeper than 50"),
        ("[" * 5_000, "values must not be nested deeper than 50"),
        ("a: " + "[" * 5_000 + "]" * 5_000, "values must not be nested deeper than 50"),
        ("a: " + "{a: " * 5_000 + "1" + "}" * 5_000, "values must not be nested deeper than 50"),
        ("a: &a [*a]", "values must not be nested deeper than 50"),
        (BOMB, "must not hold more than 100,000 values, aliases unfolded"),
        ("a: 0x" + "f" * 5_000, "the number of 5,002 characters in line 1 is too long"),
        ("a: 1\nb: [", "(line 2, column 5)"),
        ("a: \x07", "special characters are not allowed"),
        ("a: !!bool y", "y"),
        ("a: 2026-13-45", "month must be in 1..12"),
    ],
)
def test_what_has_no_end_or_no_sense_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_yaml(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_text_itself_is_not_shown() -> None:
    with pytest.raises(ValueError) as caught:
        read_yaml("uri: [s3://key:sekritword@bucket")
    assert "sekritword" not in str(caught.value)
