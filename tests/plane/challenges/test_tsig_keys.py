"""TSIG keys as the tools of DNS servers write them."""

from __future__ import annotations

import base64

import pytest

from certctrl.errors import ConfigError
from certctrl.plane.challenges.tsig_keys import TsigKey, key_for, read_key

SECRET = bytes(range(32))
TEXT = base64.b64encode(SECRET).decode()


@pytest.mark.parametrize(
    ("text", "name", "algorithm"),
    [
        (f'key "k1" {{\n\talgorithm hmac-sha512;\n\tsecret "{TEXT}";\n}};\n', "k1", "hmac-sha512"),
        (f"key k1. {{ algorithm HMAC-SHA256; secret {TEXT}; }};", "k1.", "hmac-sha256"),
        (f"# hmac-sha256:k1:{TEXT}\nkey:\n  - id: k1\n    algorithm: hmac-sha256\n    secret: {TEXT}\n", "k1", "hmac-sha256"),
        (f"hmac-sha384:k1:{TEXT}\n", "k1", "hmac-sha384"),
        (f"{TEXT}\n", "given", "hmac-sha256"),
    ],
)  # fmt: skip
def test_every_form(text: str, name: str, algorithm: str) -> None:
    key = read_key(text.encode(), secret_name="tsig_key", name="given")
    assert (key.name, key.algorithm, key.secret) == (name, algorithm, SECRET)
    assert TEXT not in repr(key) and repr(SECRET) not in repr(key)


@pytest.mark.parametrize(
    ("data", "name", "what"),
    [
        (TEXT.encode(), "", "tsig_key: has no name for the TSIG key"),
        (b"short", "k", "tsig_key: is not a TSIG key of at least 16 bytes in base64"),
        (b"", "k", "tsig_key: is not a TSIG key of at least 16 bytes in base64"),
        (b"x" * 9000, "k", "tsig_key: is not a TSIG key"),
        (b"\xff\xfe", "k", "tsig_key: is not a TSIG key"),
        (f"hmac-md5:k:{TEXT}".encode(), "k", "tsig_key: has a TSIG key for 'hmac-md5'"),
        (f'key "k" {{ secret "{TEXT[:8]}"; }};'.encode(), "", "tsig_key: is not a TSIG key of at least 16 bytes in base64"),
    ],
)  # fmt: skip
def test_what_is_not_a_key(data: bytes, name: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_key(data, secret_name="tsig_key", name=name)
    assert str(caught.value) == what and caught.value.fix
    assert TEXT not in f"{caught.value!r} {caught.value.fix}"


def test_the_closest_zone_chooses_the_key() -> None:
    every, com, example = (
        TsigKey(name=name, algorithm="hmac-sha256", secret=SECRET, zones=zones)
        for name, zones in [("every", ()), ("com", ("com.",)), ("example", ("*.example.com", "example.net"))]
    )
    keys = [every, com, example]
    chosen = {zone: key_for(keys, zone) for zone in ["a.example.com", "example.com.", "x.com", "org", "Example.NET"]}
    assert list(chosen.values()) == [example, example, com, every, example]
    assert key_for([com], "example.org") is None and key_for([com], "telecom") is None
