"""Values for messages."""

from __future__ import annotations

from typing import Any

import pytest

from mer_batch.shown import shown, shown_text


def bomb() -> list[Any]:
    """Nine levels of nine: nearly four hundred million values."""
    value: list[Any] = ["x"]
    for _ in range(9):
        value = [value] * 9
    return value


def nested(n: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(n):
        value = [value]
    return value


@pytest.mark.parametrize("value", [None, 1.5, "a", b"a", [1, "a"], {"a": {"b": (1, True)}}])
def test_what_is_short_is_shown_as_it_is(value: object) -> None:
    assert shown(value) == repr(value).removeprefix("b")


@pytest.mark.parametrize(
    "value", ["x" * 10**6, b"x" * 10**6, bomb(), {"a": bomb()}, nested(10**5), ["x" * 10**6] * 9]
)
def test_what_is_long_is_cut(value: object) -> None:
    assert 10 < len(shown(value)) < 310


@pytest.mark.parametrize(
    "secret", ["s3://key:sekrit@bucket/a", "ray://sekrit@host", "http://h/?sig=sekrit"]
)
def test_secrets_are_never_shown_wherever_the_text_is_cut(secret: str) -> None:
    for value in (secret, [secret], {secret: secret}, secret.encode(), f"{'x' * 290} {secret}"):
        assert "sek" not in shown(value)
        assert "sek" not in shown_text(str(value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key:sekrit@host:1", "'***@host:1'"),
        ("ray.address=[sekrit@host:1", "'ray.address=***@host:1'"),
        ("ray://host:1", "'ray://host:1'"),
        ("ray://sek:rit@host:1", "'ray://***@host:1'"),
        ("s3://bucket/a@b", "'s3://bucket/a@b'"),
    ],
)
def test_what_stands_before_the_host_is_hidden(text: str, words: str) -> None:
    assert shown(text) == words
