"""HAProxy's configuration: bind lines, directories, lists, quoting."""

from __future__ import annotations

import pytest
from adopt_files import files_of, host, places

from certctrl.install.adopt.haproxy import read_haproxy

MAIN = "/etc/haproxy/haproxy.cfg"
DEBIAN = """\
global
	log /dev/log	local0
	chroot /var/lib/haproxy
	stats socket /run/haproxy/admin.sock mode 660 level admin
	daemon

	# Default SSL material locations
	ca-base /etc/ssl/certs
	crt-base /etc/ssl/private

	ssl-default-bind-ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256

defaults
	log	global
	mode	http
	errorfile 400 /etc/haproxy/errors/400.http

frontend www
	bind :80
	bind *:443,[::]:443 ssl crt site.pem crt /etc/haproxy/certs/ alpn h2,http/1.1 # crt no.pem
	default_backend app

backend app
	server a 10.0.0.1:443 ssl verify required ca-file ca.pem
"""


def test_a_configuration_of_debian_with_a_directory() -> None:
    certs = "/etc/haproxy/certs"
    names = ("a.pem", "b.pem", "b.pem.key", "b.pem.ocsp", "b.pem.issuer", ".swp")
    sources = host({MAIN: DEBIAN, **{f"{certs}/{name}": "" for name in names}})
    uses = read_haproxy(sources, MAIN)
    paths = ["/etc/ssl/private/site.pem", f"{certs}/a.pem", f"{certs}/b.pem"]
    assert files_of(uses) == [{"combined.pem": path} for path in paths]
    assert places(uses) == ["127.0.0.1:443"] * 3
    assert {str(use.at) for use in uses} == {f"{MAIN}:20"}
    assert [remark.what for remark in sources.remarks] == [
        f"{certs}/b.pem.ocsp is of the present certificate, and is not updated"
    ]


@pytest.mark.parametrize(
    ("line", "files", "endpoints"),
    [
        ("bind :443 ssl crt /a.pem", ["/a.pem"], ["127.0.0.1:443"]),
        ('bind :443 ssl crt "/my certs/a.pem"', ["/my certs/a.pem"], ["127.0.0.1:443"]),
        (r"bind :443 ssl crt /my\ certs/a.pem", ["/my certs/a.pem"], ["127.0.0.1:443"]),
        ("bind :443 ssl crt '/my#certs/a.pem'", ["/my#certs/a.pem"], ["127.0.0.1:443"]),
        ("bind ipv6@:::8443 ssl crt /a.pem", ["/a.pem"], ["::1:8443"]),
        ("bind :443 accept-proxy ssl crt /a.pem", ["/a.pem"], [""]),
        ("bind unix@/run/x ssl crt /a.pem", ["/a.pem"], [""]),
        ("bind fd@4 ssl crt /a.pem", ["/a.pem"], [""]),
        ("bind :443-448 ssl crt /a.pem", ["/a.pem"], [""]),
        ("bind :443 crt /a.pem", [], []),
        ("bind :443 ssl crt /bundle", ["/bundle.rsa", "/bundle.ecdsa"], ["127.0.0.1:443"] * 2),
        ("bind :443 ssl crt-list /list", ["/a.pem", "/b.pem"],
         ["127.0.0.1:443 a.example", "127.0.0.1:443 cert-ctrl-probe.b.example"]),
    ],
)  # fmt: skip
def test_bind_lines(line: str, files: list[str], endpoints: list[str]) -> None:
    listed = "# comment\n/a.pem [alpn h2 ssl-min-ver TLSv1.2] a.example !x.a.example\n\n/b.pem *.b.example\n"
    sources = host({MAIN: f"frontend f\n  {line}\n", "/bundle.rsa": "", "/bundle.ecdsa": "", "/list": listed})
    uses = read_haproxy(sources, MAIN)
    assert (files_of(uses), places(uses)) == ([{"combined.pem": path} for path in files], endpoints)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('frontend f\n bind :443 ssl crt "${CERT}"', "${CERT} is not a path"),
        ("frontend f\n bind :443 ssl crt @store/site", "@store/site is not a path"),
        ("frontend f\n bind :443 ssl crt-list $LIST", "$LIST is not a path"),
        ("crt-store\n load crt a.pem key a.key", "crt-store"),
        ("backend b\n server a 10.0.0.1:443 ssl crt /client.pem", "client is not taken over: /client.pem"),
    ],
)
def test_what_is_not_known_is_reported(text: str, why: str) -> None:
    sources = host({MAIN: text})
    assert read_haproxy(sources, MAIN) == []
    assert [why in remark.what for remark in sources.remarks] == [True]


def test_a_directory_of_files_shares_its_base() -> None:
    sources = host({"/h/1.cfg": "global\n crt-base /t", "/h/2.cfg": "listen l\n bind :443 ssl crt a", "/h/x": "bind"})
    assert files_of(read_haproxy(sources, "/h")) == [{"combined.pem": "/t/a"}]
