"""RFC 8785: the number samples of its appendix B, and invariants of the canonical form."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import struct
import subprocess
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_items import installs_hash

from certctrl.protocol.wire.canonical import canonical_json, standard_base64, text_hash

SAMPLES = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(("bits", "text"), SAMPLES.items())
def test_numbers_of_the_rfc(bits: str, text: str) -> None:
    assert canonical_json(struct.unpack(">d", bytes.fromhex(bits))[0]) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-7, "-7"),
        (2**53, "9007199254740992"),
        (2**53 + 1, "9007199254740992"),
        (-(2**53) - 1, "-9007199254740992"),
        (2**54 - 1, "18014398509481984"),
        (10**21, "1e+21"),
        (1.0, "1"),
        (-0.5, "-0.5"),
        (1.5, "1.5"),
        (0.1, "0.1"),
        (0.0001, "0.0001"),
        (1.25e-05, "0.0000125"),
        (1e-07, "1e-7"),
        (1.25e-07, "1.25e-7"),
        (120.0, "120"),
        (1e16, "10000000000000000"),
        ('\x08\t\n\x0c\r"\\\x00\x1f\x7f€😀', '"\\b\\t\\n\\f\\r\\"\\\\\\u0000\\u001f\x7f€😀"'),
        ({"b": 1, "a": [True, False, None]}, '{"a":[true,false,null],"b":1}'),
        # UTF-16 order: the surrogate pair of 😀 sorts before U+FB33
        ({"\ufb33": 1, "😀": 2, "\r": 3, "1": 4, "é": 5, "\x80": 6, "€": 7},
         '{"\\r":3,"1":4,"\x80":6,"é":5,"€":7,"😀":2,"\ufb33":1}'),
    ],
)  # fmt: skip
def test_values(value: object, text: str) -> None:
    assert canonical_json(value) == text


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "JSON has neither NaN nor infinity"),
        (math.inf, "JSON has neither NaN nor infinity"),
        (-math.inf, "JSON has neither NaN nor infinity"),
        (10**400, "a number beyond the range of a double"),
        ("\ud800", "surrogates not allowed"),
        ({"\ud800": 1}, "surrogates not allowed"),
        ({1: 2}, "the names of a JSON object must be text"),
        ({"a": 1, 2: 3}, "the names of a JSON object must be text"),
        (object(), "JSON has no object"),
        (b"x", "JSON has no bytes"),
        ([{"a": {1, 2}}], "JSON has no set"),
    ],
)
def test_values_without_a_canonical_form(value: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        canonical_json(value)


def test_deep_nesting_is_a_value_error() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="deep"):
        canonical_json(value)


@given(JSON)
def test_canonical_text_is_json_and_stable(value: object) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text
    assert canonical_json(json.loads(json.dumps(value))) == text


@given(st.dictionaries(TEXT, JSON, max_size=6), st.randoms())
def test_order_of_names_does_not_matter(value: dict[str, Any], random: Any) -> None:
    names = list(value)
    random.shuffle(names)
    assert canonical_json({name: value[name] for name in names}) == canonical_json(value)


@settings(max_examples=5)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=300, max_size=300))
def test_numbers_are_printed_as_in_javascript(numbers: list[float]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = "let t='';process.stdin.on('data',d=>t+=d).on('end',()=>console.log(JSON.stringify(JSON.parse(t))))"
    done = subprocess.run([node, "-e", script], input=json.dumps(numbers), capture_output=True, text=True, check=True)
    assert canonical_json(numbers) == done.stdout.strip()


@pytest.mark.parametrize(
    ("text", "standard"),
    [("-_8=", "+/8"), ("+/8=", "+/8"), ("aX==", "aX"), ("=a", "=a"), ("a=\n", "a=\n"), ("a ", "a "), ("", "")],
)
def test_base64_has_one_form_for_comparisons(text: str, standard: str) -> None:
    assert standard_base64(text) == standard


def test_hashes() -> None:
    items = [{"type": "copy", "id": 1}]
    expected = b64encode(hashlib.sha256(b'[{"id":1,"type":"copy"}]').digest()).decode()
    assert installs_hash(items) == installs_hash(tuple(items)) == expected
    assert text_hash('[{"id":1,"type":"copy"}]') == expected
    assert text_hash('[{"type":"copy","id":1}]') != expected
