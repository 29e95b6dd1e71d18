"""The bytes of state files: valid ones are read, and damage is named."""

from __future__ import annotations

from typing import Any

import pytest

from certctrl.errors import StateCorruptError
from certctrl.store import decode


def refused(function: Any, data: bytes) -> StateCorruptError:
    with pytest.raises(StateCorruptError) as caught:
        function(data, "/x", "the fix")
    assert caught.value.path == "/x"
    return caught.value


LONGEST = 64 * 1024 // 4


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"abc", "abc"), (b"abc\n", "abc"), (b" abc \r\n", "abc"), (b"a b", "a b"), ("ä€".encode(), "ä€"),
        (b"x" * LONGEST, "x" * LONGEST),
    ],
)  # fmt: skip
def test_a_text_file_is_one_line(data: bytes, text: str) -> None:
    assert decode.text_of(data, "/x", "the fix") == text
    assert decode.fits_text(text) is True


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "it is empty"), (b"\xff", "it is not text"), (b"\n", "expected one line of text"),
        (b"a\nb", "expected one line of text"), (b"a\tb", "expected one line of text"),
        (b"x" * (LONGEST + 1), "expected one line of text"), (b"a\0b", "it contains NUL bytes"),
        (b"\0", "it contains NUL bytes"),
    ],
)  # fmt: skip
def test_damage_of_a_text_file_is_named(data: bytes, what: str) -> None:
    error = refused(decode.text_of, data)
    assert (str(error), error.fix) == (f"/x is damaged: {what}", "the fix")


@pytest.mark.parametrize("text", ["", " a", "a\n", "a\nb", "\0", "x" * (LONGEST + 1)])
def test_texts_that_would_not_be_read_back(text: str) -> None:
    assert decode.fits_text(text) is False


@pytest.mark.parametrize(
    ("data", "time"),
    [
        (b"1800000000\n", 1_800_000_000.0), (b"0\n", 0.0), (b"9" * 15 + b"\n", 999_999_999_999_999.0),
        (b"9" * 16 + b"\n", None), (b"1800000000", None), (b"1\n2", None), (b"1\n\n", None), (b"", None), (b"\n", None),
        (b"-1\n", None), (b"1.5\n", None), (b"\0\0\n", None),
    ],
)  # fmt: skip
def test_the_poll_time_is_a_whole_line_of_digits(data: bytes, time: float | None) -> None:
    assert decode.poll_time_of(data) == time


OBJECTS: list[tuple[bytes, str]] = [
    (b"", "it is empty"),
    (b"\0\0", "it contains only NUL bytes"),
    (b" ", "it is not JSON, or is truncated"),
    (b"X\0", "it is not JSON, or is truncated"),
    (b"\0{", "it is not JSON, or is truncated"),
    (b"{", "it is not JSON, or is truncated"),
    (b"\xff", "it is not JSON, or is truncated"),
    (b"[" * 100_000, "it is not JSON, or is truncated"),
    (b"[]", "expected a JSON object"),
    (b"{}", "its state version is missing"),
    (b'{"state_version":true}', "its state version is missing"),
    (b'{"state_version":"1"}', "its state version is missing"),
    (b'{"state_version":1.0}', "its state version is missing"),
    (b'{"state_version":0}', "its state version is missing"),
    (b'{"STATE_VERSION":1}', "its state version is missing"),
]


@pytest.mark.parametrize(("data", "what"), OBJECTS, ids=[str(data)[:30] for data, _ in OBJECTS])
def test_damage_of_a_json_file_is_named(data: bytes, what: str) -> None:
    error = refused(decode.object_of, data)
    assert (str(error), error.fix) == (f"/x is damaged: {what}", "the fix")


def test_a_file_of_a_later_release_is_kept() -> None:
    error = refused(decode.object_of, b'{"state_version":2}')
    assert str(error) == "/x was written by a later cert-ctrl (state version 2, this one knows 1)"
    assert error.fix == "install that version again; docs/upgrading.md says how to go back"


def test_json_files_are_written_compactly_with_their_version() -> None:
    data = decode.to_json({"a": [1, {"b": None}], "c": "ä"})
    assert data == b'{"state_version":1,"a":[1,{"b":null}],"c":"\\u00e4"}\n'
    assert decode.object_of(data, "/x", "") == {"state_version": 1, "a": [1, {"b": None}], "c": "ä"}
    with pytest.raises(ValueError, match="JSON compliant"):
        decode.to_json({"a": float("nan")})


@pytest.mark.parametrize("rows", [[], ["1"], ['{"a":1}', "2", "[]"]])
def test_rows_that_are_json_already_are_joined(rows: list[str]) -> None:
    data = decode.to_json_of_rows("rows", rows)
    assert data == b'{"state_version":1,"rows":[%s]}\n' % ",".join(rows).encode()
