"""Files of certificates to issue: both forms, and every error with its line and field."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.cli.plane.issue_file import FIELDS, MAX_NAMES, Entry, entries_of, read_entries
from certctrl.errors import UsageError

CSV = """domains,devices,issuer,validity_seconds,must_staple
www.example.com example.com,web-1; my host,le,86400,yes

a.example;b.example,,,,
"""
JSON = """[
  {"domains": ["www.example.com", "example.com"], "devices": ["web-1", "my host"],
   "issuer": "le", "validity_seconds": 86400, "must_staple": true},

  {"domains": "a.example b.example"}]
"""


def test_csv_and_json_say_the_same() -> None:
    (first, second), errors = entries_of(CSV)
    assert not errors
    assert first == Entry(
        line=2, domains=("www.example.com", "example.com"), devices=("web-1", "my host"),
        fields={"issuer": "le", "validity_seconds": 86400, "must_staple": True},
    )  # fmt: skip
    assert second == Entry(line=4, domains=("a.example", "b.example"), fields={})
    (one, two), errors = entries_of(JSON)
    assert not errors
    assert (one.line, two.line) == (2, 5)
    assert [(e.domains, e.devices, e.fields) for e in (one, two)] == [
        (e.domains, e.devices, e.fields) for e in (first, second)
    ]


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        (
            "domains,validity_seconds,must_staple\n,5,\na.example,soon,maybe\n",
            ["line 2, domains: at least one name is needed", "line 3, validity_seconds: expected a whole number above 0",
             "line 3, must_staple: expected yes or no"],
        ),
        ("domains\na.example\nb.example\nA.example.\n", ["line 4, domains: the same certificate as in line 2"]),
        ("domains\na.example,surplus\n", ["line 2, column 2: there is no such field; use "]),
        ('[{"domains": ["a.example"], "isuer": "le"}]', ["line 1, isuer: there is no such field; did you mean issuer?"]),
        ('[\n5,\n{"domains": [7]}]', ["line 2: expected an object", "line 3, domains: expected a list of texts"]),
        ('[{"domains": ["a.example"], "domains": ["b.example"]}]', ["line 1, domains (twice): there is no such field"]),
        ('[{"domains": ["a.example"], "devices": [true]}]', ["line 1, devices: expected ids and names"]),
        ('[{"domains": ["a.example"], "validity_seconds": true}]', ["line 1, validity_seconds: expected a whole"]),
        (json.dumps([{"domains": ["a.example"] * (MAX_NAMES + 1)}]), ["line 1, domains: a certificate may have at most"]),
    ],
)  # fmt: skip
def test_every_error_is_named(text: str, errors: list[str]) -> None:
    _, found = entries_of(text)
    assert len(found) == len(errors)
    for one, expected in zip(found, errors, strict=True):
        assert str(one).startswith(expected)


def test_other_keys_and_profiles_are_other_certificates() -> None:
    entries, errors = entries_of("domains,key_type,profile\na.example,rsa-2048,\na.example,,\na.example,,short\n")
    assert len(entries) == 3
    assert not errors


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column domains"),
        ("domains\n", "no certificates"),
        ("[]", "no certificates"),
        ("{}", "expected a list"),
        ("name,domains\n", "line 1, name: there is no such field"),
        ("domains,domains\n", "given twice"),
        ('domains\n"a\n', "line 2 is not CSV"),
        ('[{"domains": ["a.example"]},\n{"domains" ["b"]}]', "line 2, column 12 is not JSON"),
        ('[{"domains": ["a.example"]}', "line 1, column 28 is not JSON: expected , or"),
        ('[{"domains": ["a.example"]} {}]', "line 1, column 29 is not JSON: expected , or"),
        ('[{"domains": ["a.example"]}] 5', "line 1, column 30 is not JSON: text after the list"),
        (
            '[{"domains": ["a.example"]},\n {"domains": ["b.example"]},\n]\n',
            "line 2, column 28 is not JSON: a comma after",
        ),
        ('[{"domains": ["a.example"]},', "line 1, column 29 is not JSON: Expecting value"),
        ('[{"domains": ["a.example"],}]', "line 1, column 2[78] is not JSON"),
        ('[{"domains": ["a.example",]}]', "line 1, column 2[67] is not JSON"),
        ("[,]", "line 1, column 2 is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_neither(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        entries_of(text)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "certificates.csv"
    file.write_bytes(b"\xef\xbb\xbfdomains\r\na.example\r\n")
    assert read_entries(file)[0] == [Entry(line=2, domains=("a.example",), fields={})]
    file.write_bytes(b"domains\na.example\n\xff\n")
    with pytest.raises(UsageError, match="line 3 is not UTF-8"):
        read_entries(file)
    with pytest.raises(UsageError, match="cannot read"):
        read_entries(tmp_path / "absent")


NAMES = st.lists(st.text("abcdef.-", min_size=1, max_size=12), min_size=1, max_size=4)


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_both_forms_are_read_alike(rows: list[list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["domains"])
    writer.writerows([" ".join(row)] for row in rows)
    from_csv, errors = entries_of(text.getvalue())
    from_json, same = entries_of(json.dumps([{"domains": row} for row in rows]))
    assert [entry.domains for entry in from_csv] == [entry.domains for entry in from_json]
    assert len(errors) == len(same)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(FIELDS)), inner),
    )
)
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        entries, errors = entries_of(json.dumps([value], indent=1))
    except ValueError:
        return
    assert entries or errors


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        entries, errors = entries_of(text)
    except ValueError:
        return
    assert entries or errors
