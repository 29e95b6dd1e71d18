"""URLs that credentials may be sent to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.errors import ConfigError, ExitStatus
from certctrl.model.config import is_loopback
from certctrl.model.origin import Origin, parse_origin, parse_proxy, proxy_login


@pytest.mark.parametrize(
    ("url", "origin", "text"),
    [
        ("https://plane.example", Origin("https", "plane.example", 443), "https://plane.example"),
        ("https://Plane.Example:443/", Origin("https", "plane.example", 443), "https://plane.example"),
        ("https://10.0.0.7:8443", Origin("https", "10.0.0.7", 8443), "https://10.0.0.7:8443"),
        ("https://[2001:db8::1]:8443", Origin("https", "2001:db8::1", 8443), "https://[2001:db8::1]:8443"),
        ("https://[::1]", Origin("https", "::1", 443), "https://[::1]"),
        ("https://Bücher.example", Origin("https", "xn--bcher-kva.example", 443), "https://xn--bcher-kva.example"),
        ("https://ｐｌａｎｅ.example:1", Origin("https", "plane.example", 1), "https://plane.example:1"),
    ],
)
def test_an_https_origin(url: str, origin: Origin, text: str) -> None:
    assert parse_origin(url) == origin
    assert str(parse_origin(url)) == text


@pytest.mark.parametrize("url", ["http://127.0.0.1:80", "http://[::1]:8080", "http://localhost", "http://127.9.9.9"])
def test_plain_http_only_on_loopback_and_only_when_allowed(url: str) -> None:
    with pytest.raises(ConfigError, match="plain http"):
        parse_origin(url)
    assert parse_origin(url, allow_http_loopback=True).scheme == "http"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "plane.example",
        "http://plane.example",
        "http://127.0.0.1.example",
        "http://localhost.example",
        "ftp://plane.example",
        "https://",
        "https://:443",
        "https://plane.example:0",
        "https://plane.example:99999",
        "https://plane.example/api",
        "https://plane.example?x=1",
        "https://plane.example#x",
        "https://user@plane.example",
        "https://user:secret@plane.example",
        "https://pla ne.example",
        "https://[::1",
        "https://pla\x00ne.example",
        "https://plane\x7f.example",
        "https://bü<cher.example",
        "https://\u200d.example",
    ],
)
def test_all_other_urls_are_refused_with_a_fix(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_origin(url, allow_http_loopback=True)
    assert caught.value.exit_status is ExitStatus.CONFIG
    assert caught.value.fix
    assert "application.json: server_url" in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_accepted_or_refused_as_url(text: str) -> None:
    for url in (text, f"https://{text}", f"http://{text}"):
        try:
            origin = parse_origin(url, allow_http_loopback=True)
        except ConfigError:
            continue
        assert origin.scheme == "https" or is_loopback(origin.host)
        assert 0 < origin.port < 65536
        assert origin.netloc.isascii()
        assert origin.netloc.isprintable()


def test_messages_about_a_proxy_omit_its_password() -> None:
    proxy = parse_proxy("http://agent:geheim@10.0.0.1:3128")
    assert proxy is not None
    assert proxy.place == "10.0.0.1:3128"
    assert parse_proxy("") is None
    for wrong in ("10.0.0.1:3128", "socks5://10.0.0.1", "http://", "http://10.0.0.1:99999", "http://10.0.0.1/x"):
        with pytest.raises(ConfigError) as caught:
            parse_proxy(wrong)
        assert "10.0.0.1" not in str(caught.value), "a proxy URL may contain a password"


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("http://10.0.0.1:3128", None),
        ("http://agent:geheim@10.0.0.1:3128", ("agent", "geheim")),
        ("http://agent@10.0.0.1", ("agent", "")),
        ("http://a%40b:p%3A%C3%BC@10.0.0.1", ("a@b", "p:ü")),
    ],
)
def test_the_login_of_a_proxy_is_part_of_its_url(url: str, login: tuple[str, str] | None) -> None:
    assert proxy_login(url) == login
