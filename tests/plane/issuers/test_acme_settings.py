"""The settings of an ACME issuer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from certctrl.errors import ConfigError
from certctrl.plane.issuers.acme_settings import AcmeSettings, checked_settings

URL = "https://ca.test/directory"
CHALLENGES = [{"type": "plane-http"}]
HMAC = {"eab_hmac_key": b"zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}


def checked(secrets: Mapping[str, bytes] | None = None, **settings: object) -> dict[str, Any]:
    return checked_settings({"directory_url": URL, "challenges": CHALLENGES} | settings, secrets or {})


def test_defaults() -> None:
    found = checked()
    assert [one["type"] for one in found.pop("challenges")] == ["plane-http"]
    assert found == {
        "directory_url": URL, "contact": [], "terms_agreed": False, "profile": "", "preferred_chain": "", "eab_kid": "",
        "ca_file": "", "other_hosts": [], "proxy": "", "budget": "300/3h",
    }  # fmt: skip


def test_checking_twice_changes_nothing() -> None:
    once = checked(
        HMAC, eab_kid="kid", contact="mailto:a@example.com", terms_agreed="true", other_hosts="CA2.test:8443"
    )
    assert checked_settings(once, HMAC) == once
    settings = AcmeSettings.of(once, HMAC)
    assert settings.contact == ("mailto:a@example.com",) and settings.binding is not None
    assert "zWND" not in repr(settings) and settings.other_hosts == ("ca2.test:8443",)


def test_short_names() -> None:
    assert checked(directory_url="letsencrypt")["directory_url"] == "https://acme-v02.api.letsencrypt.org/directory"
    assert checked(directory_url="http://127.0.0.1:14000/dir")["directory_url"].startswith("http://127")


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("directory_url", "", "letsencrypt"),
        ("directory_url", "http://ca.test/directory", "write the URL"),
        ("directory_url", "https://user@ca.test/", "write the URL"),
        ("directory_url", "https://[::1", "write the URL"),
        ("directory_url", "ftp://ca.test", "write the URL"),
        ("directory_url", 7, "text"),
        ("directory_url", "https://ca.test/\n", "text"),
        ("contact", "nobody", "name@example.com"),
        ("contact", ["a@example.com", 7], "name@example.com"),
        ("contact", {"a": 1}, "one address"),
        ("contact", ["a@example.com"] * 11, "one address"),
        ("contact", "a@example.com,b@example.com", "name@example.com"),
        ("terms_agreed", "yes", "true or false"),
        ("terms_agreed", 1, "true or false"),
        ("profile", "a b", "as the CA announces"),
        ("ca_file", "ca.pem", "starting with /"),
        ("ca_file", "/nonexistent/ca.pem", "readable"),
        ("ca_file", "/etc/passwd", "PEM"),
        ("other_hosts", ["https://x"], "HOST"),
        ("other_hosts", 7, "HOST"),
        ("proxy", "https://proxy.test:3128", "http://HOST:PORT"),
        ("proxy", "http://proxy.test", "http://HOST:PORT"),
        ("proxy", "http://user:secret@proxy.test:3128", "proxy_login"),
        ("proxy", "http://[::1:3128", "http://HOST:PORT"),
        ("budget", "300", "300/3h"),
        ("budget", "0/3h", "300/3h"),
        ("budget", "300/0h", "300/3h"),
        ("budget", "300/3y", "300/3h"),
        ("budget", "-1/h", "300/3h"),
        ("challenges", [], "plane-http"),
        ("challenges", "plane-http", "plane-http"),
        ("challenges", [{"type": "magic"}], "use one of"),
        ("eab_kid", "kid", "HMAC key"),
        ("directry_url", URL, "use 'directory_url'"),
        ("zzz", 1, "use directory_url, contact,"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_field_and_the_fix(field: str, value: Any, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(**{field: value})
    assert str(caught.value).isprintable() and field in str(caught.value), str(caught.value)
    assert caught.value.fix is not None and fix in caught.value.fix, caught.value.fix


def test_an_hmac_key_without_its_id_or_damaged() -> None:
    with pytest.raises(ConfigError, match=r"^eab_hmac_key: is given, but eab_kid is not set"):
        checked(HMAC)
    with pytest.raises(ConfigError, match=r"^eab_hmac_key: is not base64url") as caught:
        checked({"eab_hmac_key": b"secret! not base64"}, eab_kid="kid")
    assert "secret!" not in str(caught.value)


def test_a_proxy() -> None:
    once = checked({"proxy_login": b"user:pass:word\n"}, proxy="http://Proxy.test:3128/")
    assert once["proxy"] == "http://Proxy.test:3128"
    proxy = AcmeSettings.of(once, {"proxy_login": b"user:pass:word\n"}).proxy
    assert proxy is not None and proxy.login == "user:pass:word" and "pass" not in repr(proxy)
    with pytest.raises(ConfigError, match=r"^proxy_login: is given, but proxy is not set"):
        checked({"proxy_login": b"user:password"})
    for login in (b"user", b"\xff:x", b"a:b\nc"):
        with pytest.raises(ConfigError, match=r"^proxy_login: is not USER:PASSWORD"):
            checked({"proxy_login": login}, proxy="http://proxy.test:3128")


def test_a_ca_file(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\n")
    assert checked(ca_file=str(file))["ca_file"] == str(file)


def test_a_ca_file_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import sys; from certctrl.plane.issuers.acme_settings import _check_ca_file;"
        " from certctrl.errors import ConfigError\n"
        "try: _check_ca_file(sys.argv[1])\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pipe")], capture_output=True, timeout=60, text=True
    )
    assert "not a regular one" in done.stdout
