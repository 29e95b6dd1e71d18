"""Lists of keys that no certificate may have."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from csrs import csr
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import ConfigError
from certctrl.plane.ca.csr import check_csr, key_digest
from certctrl.plane.ca.denied_keys import DeniedKeys, debian_entry, read_denied_keys
from certctrl.plane.core import Plane
from certctrl.plane.errors import ErrorResponse

NAMES = ("www.example.com",)
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def debian_line(key: rsa.RSAPrivateKey) -> str:
    """Return a key as the tool of openssl-blacklist computes it: openssl rsa -noout -modulus | sha1sum | cut -c21-40."""
    text = f"Modulus={key.public_key().public_numbers().n:X}\n"
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[20:]


def written(folder: Path, *lines: str, name: str = "list") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines))
    return folder


def is_refused(keys: DeniedKeys, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bool:
    try:
        check_csr(csr(NAMES, key=key), NAMES, denied=keys)
    except ErrorResponse as error:
        assert (error.key, error.params["reason"]) == ("CSR_REFUSED", "denied-key")
        return True
    return False


def test_keys_of_both_formats_are_refused_and_others_are_not(tmp_path: Path) -> None:
    noise = [secrets.token_hex(10) for _ in range(500)]
    written(tmp_path / "d", "# Debian", *noise, debian_line(RSA), "", name="blacklist.RSA-2048")
    keys = read_denied_keys(tmp_path / "d")
    assert (len(keys), is_refused(keys, RSA), is_refused(keys, EC)) == (501, True, False)
    written(tmp_path / "d", key_digest(EC.public_key()).upper(), name="leaked")
    keys = read_denied_keys(tmp_path / "d")
    assert (len(keys), is_refused(keys, RSA), is_refused(keys, EC)) == (502, True, True)
    assert not is_refused(DeniedKeys(), RSA)


def test_no_directory_is_no_list(tmp_path: Path) -> None:
    assert len(read_denied_keys(tmp_path / "missing")) == 0
    written(tmp_path / "d", "# nothing", "   ")
    assert len(read_denied_keys(tmp_path / "d")) == 0


@pytest.mark.parametrize("line", ["x", "ab", "0" * 63, "g" * 64, "0" * 40, "é" * 10])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="line 2 is not a key") as caught:
        read_denied_keys(written(tmp_path / "d", "0" * 64, line))
    assert caught.value.file == str(tmp_path / "d" / "list")


def test_files_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certctrl.plane.ca.denied_keys.MAX_BYTES", 100)
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        read_denied_keys(written(tmp_path / "d", "0" * 64, "1" * 64))


async def test_the_plane_reads_the_lists_of_its_directory(tmp_path: Path) -> None:
    with Plane.open(tmp_path / "plane"):
        pass
    written(tmp_path / "plane" / "denied-keys", debian_line(RSA))
    with Plane.open(tmp_path / "plane") as plane:
        with pytest.raises(ErrorResponse, match="must not be used; make a new key"):
            await plane.ca.sign_csr(csr(NAMES, key=RSA), NAMES, validity_seconds=3600)
        await plane.ca.sign_csr(csr(NAMES, key=EC), NAMES, validity_seconds=3600)


@given(st.sets(st.binary(min_size=10, max_size=10), max_size=60), st.binary(min_size=10, max_size=10))
def test_entries_are_found_and_no_others(entries: set[bytes], other: bytes) -> None:
    keys = DeniedKeys(entries)
    assert len(keys) == len(entries)
    assert all(keys._contains(entry) for entry in entries)
    assert keys._contains(other) == (other in entries)


def test_the_debian_format() -> None:
    assert debian_entry(RSA.public_key().public_numbers().n).hex() == debian_line(RSA)
