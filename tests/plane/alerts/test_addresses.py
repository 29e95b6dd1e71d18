"""Addresses that nothing is sent to, and URLs that a channel may have."""

from __future__ import annotations

import pytest

from certctrl.errors import ConfigError
from certctrl.plane.alerts.addresses import DeliveryError, allowed_addresses, refused
from certctrl.plane.alerts.settings import check_url, given


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "::1", "::", "0.0.0.0", "169.254.169.254", "fe80::1%eth0", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00:ec2::254", "224.0.0.1", "ff02::1",
        "255.255.255.255", "100.100.100.200",
    ],
)  # fmt: skip
def test_a_refused_address(address: str) -> None:
    assert refused(address)
    with pytest.raises(DeliveryError, match="host is"):
        allowed_addresses("host", ["192.0.2.1", address], allow_local=False)
    assert allowed_addresses("host", [address], allow_local=True) == [address]


@pytest.mark.parametrize("address", ["192.0.2.7", "10.0.0.1", "192.168.1.1", "2001:db8::1", "fd12::1", "8.8.8.8"])
def test_an_allowed_address(address: str) -> None:
    assert refused(address) == ""


@pytest.mark.parametrize(
    "url",
    [
        "", "http://example.com/", "ftp://example.com/", "https://", "https://user:pw@example.com/", "https://a b/",
        "https://example.com:99999/", "https://localhost/", "https://127.0.0.1/", "https://[::1]/",
        "https://169.254.169.254/latest", "https://exämple.com/", "https://example.com/#x", "javascript:1",
        "https://[fe80::1]/", "https://example.com/\n", "https://[::ffff:127.0.0.1]:8443/",
    ],
)  # fmt: skip
def test_a_refused_url_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_url(url, allow_local=False)
    assert not url or url not in str(error.value)


@pytest.mark.parametrize(
    "text", ["a@example.com, b@example.com", "a@example.com,b@example.com", "A <a@example.com>, b@c.d"]
)
def test_two_mail_addresses_are_not_one(text: str) -> None:
    found = {"host": "mail.example.com", "sender": "a@example.com", "recipients": [text]}
    with pytest.raises(ConfigError, match="is not a mail address"):
        given("mail", found)
    assert given("mail", found | {"recipients": ['"Ops, all" <a@example.com>']}).recipients


def test_an_allowed_url() -> None:
    assert check_url("https://hooks.example.com/a?b=c", allow_local=False)
    assert check_url("http://127.0.0.1:8080/", allow_local=True)
    with pytest.raises(ConfigError):
        check_url("http://example.com/", allow_local=True)
