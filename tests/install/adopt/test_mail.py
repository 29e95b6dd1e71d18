"""Configurations of Postfix and Dovecot."""

from __future__ import annotations

import pytest
from adopt_files import files_of, host, places

from certctrl.install.adopt.dovecot import read_dovecot
from certctrl.install.adopt.postfix import read_postfix

MAIN, MASTER = "/etc/postfix/main.cf", "/etc/postfix/master.cf"
DEBIAN = """\
# See /usr/share/postfix/main.cf.dist for a commented, more complete version
smtpd_banner = $myhostname ESMTP $mail_name (Debian/GNU)
biff = no

# TLS parameters
smtpd_tls_cert_file=/etc/ssl/certs/mail.pem
smtpd_tls_key_file=/etc/ssl/private/mail.key
smtpd_tls_security_level=may

smtp_tls_CApath=/etc/ssl/certs
smtp_tls_security_level=may
myhostname = mail.example.com
inet_interfaces = all
"""
MASTERS = """\
# service type  private unpriv  chroot  wakeup  maxproc command + args
smtp      inet  n       -       y       -       -       smtpd
#submission inet n       -       y       -       -       smtpd
smtps     inet  n       -       y       -       -       smtpd
  -o syslog_name=postfix/smtps
  -o smtpd_tls_wrappermode=yes
pickup    unix  n       -       y       60      1       pickup
smtp      unix  -       -       y       -       -       smtp
"""
PAIR = {"fullchain.pem": "/c.pem", "private.key": "/c.key"}
ON = "smtpd_tls_security_level = may\n"


def test_a_mail_server_of_debian() -> None:
    (use,) = read_postfix(host({MAIN: DEBIAN, MASTER: MASTERS}), MAIN)
    assert dict(use.files) == {"fullchain.pem": "/etc/ssl/certs/mail.pem", "private.key": "/etc/ssl/private/mail.key"}
    assert str(use.at) == f"{MAIN}:6"
    assert places([use]) == ["127.0.0.1:25 mail.example.com smtp"]


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("smtpd_tls_cert_file = /c.pem\nsmtpd_tls_key_file = /c.key", [PAIR]),
        ("smtpd_tls_cert_file =\n    /c.pem\n# comment\n\n  \nsmtpd_tls_key_file =\n\t/c.key", [PAIR]),
        ("smtpd_tls_cert_file = /c.pem", [{"combined.pem": "/c.pem"}]),
        ("smtpd_tls_cert_file = /c.pem\nsmtpd_tls_key_file = $smtpd_tls_cert_file", [{"combined.pem": "/c.pem"}]),
        ("tls = /srv\nsmtpd_tls_cert_file = ${tls}/c.pem\nsmtpd_tls_key_file = $(tls)/c.key",
         [{"fullchain.pem": "/srv/c.pem", "private.key": "/srv/c.key"}]),
        ("smtpd_tls_cert_file = $config_directory/c.pem", [{"combined.pem": "/etc/postfix/c.pem"}]),
        ("smtpd_tls_eccert_file = /c.pem\nsmtpd_tls_eckey_file = /c.key", [PAIR]),
        ("smtpd_tls_cert_file = none", []),
        ("smtpd_tls_cert_file = /old\nsmtpd_tls_cert_file = /c.pem\nsmtpd_tls_key_file = /c.key", [PAIR]),
        ("smtpd_tls_chain_files = /a.pem,\n /b.pem\nsmtpd_tls_cert_file = /c.pem", [{"": "/b.pem"}]),
    ],
)  # fmt: skip
def test_parameters(text: str, files: list[dict[str, str]]) -> None:
    assert files_of(read_postfix(host({MAIN: text, MASTER: ""}), MAIN)) == files


@pytest.mark.parametrize(
    ("master", "place"),
    [
        ("smtp inet n - y - - smtpd", "127.0.0.1:25 smtp"), ("submission inet n - y - - smtpd", "127.0.0.1:587 smtp"),
        ("127.0.0.1:10025 inet n - y - - smtpd", "127.0.0.1:10025 smtp"),
        ("smtps inet n - y - - smtpd\n  -o smtpd_tls_wrappermode=yes", "127.0.0.1:465"),
        ("smtp inet n - y - - postscreen", "127.0.0.1:25 smtp"), ("", "127.0.0.1:25 smtp"),
        ("smtp inet n - y - - smtpd -o smtpd_tls_security_level=none", ""),
        ("smtp inet n - y - - smtpd\n -o smtpd_upstream_proxy_protocol=haproxy", ""),
    ],
)  # fmt: skip
def test_endpoints(master: str, place: str) -> None:
    assert places(read_postfix(host({MAIN: ON + "smtpd_tls_cert_file = /c.pem", MASTER: master}), MAIN)) == [place]


def test_a_server_with_a_certificate_of_its_own() -> None:
    master = "smtp inet n - y - - smtpd\nsubmission inet n - y - - smtpd\n -o smtpd_tls_cert_file=/own.pem\n"
    uses = read_postfix(host({MAIN: ON + "smtpd_tls_cert_file = /c.pem", MASTER: master}), MAIN)
    assert {dict(use.files)["combined.pem"]: place for use, place in zip(uses, places(uses), strict=True)} == {
        "/c.pem": "127.0.0.1:25 smtp", "/own.pem": "127.0.0.1:587 smtp",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("smtpd_tls_cert_file = $unknown/c.pem", "a parameter is not set"),
        ("a = $b\nb = $a\nsmtpd_tls_cert_file = $a", "a parameter is not set"),
        ("smtp_tls_cert_file = /client.pem", "client is not taken over: smtp_tls_cert_file = /client.pem"),
        ("tls_server_sni_maps = lmdb:/etc/postfix/sni", "tls_server_sni_maps"),
    ],
)
def test_what_is_not_known_is_reported(text: str, why: str) -> None:
    sources = host({MAIN: text, MASTER: ""})
    assert read_postfix(sources, MAIN) == []
    assert [why in remark.what for remark in sources.remarks] == [True]


# --- Dovecot --------------------------------------------------------------------------------------------------------

DOVECOT = "/etc/dovecot/dovecot.conf"
DOVECOT_CONF = """\
!include_try /usr/share/dovecot/protocols.d/*.protocol
dict {
  #quota = mysql:/etc/dovecot/dovecot-dict-sql.conf.ext
}
!include conf.d/*.conf
!include_try local.conf
"""
SSL_CONF = """\
# SSL/TLS support: yes, no, required. <doc/wiki/SSL.txt>
ssl = yes

# PEM encoded X.509 SSL/TLS certificate and private key.
ssl_cert = </etc/dovecot/private/dovecot.pem
ssl_key = </etc/dovecot/private/dovecot.key
#ssl_key_password =
ssl_client_ca_dir = /etc/ssl/certs
"""


def test_a_mail_store_of_debian() -> None:
    sources = host({DOVECOT: DOVECOT_CONF, "/etc/dovecot/conf.d/10-ssl.conf": SSL_CONF})
    (use,) = read_dovecot(sources, DOVECOT)
    private = "/etc/dovecot/private"
    assert dict(use.files) == {"fullchain.pem": f"{private}/dovecot.pem", "private.key": f"{private}/dovecot.key"}
    assert str(use.at) == "/etc/dovecot/conf.d/10-ssl.conf:5"
    assert places([use]) == ["127.0.0.1:993"]
    assert not sources.remarks


@pytest.mark.parametrize(
    ("text", "files", "endpoints"),
    [
        ("ssl_server_cert_file = /c.pem\nssl_server_key_file = /c.key", [PAIR], ["127.0.0.1:993"]),
        ("ssl_server {\n cert_file = /c.pem\n key_file = /c.key\n}", [PAIR], ["127.0.0.1:993"]),
        ("ssl_cert = <c.pem\nssl_key = <c.pem", [{"combined.pem": "/etc/dovecot/c.pem"}], ["127.0.0.1:993"]),
        ('ssl_cert = "</my certs/c.pem"\nssl_key = </c.key # comment',
         [{"fullchain.pem": "/my certs/c.pem", "private.key": "/c.key"}], ["127.0.0.1:993"]),
        ("ssl_cert = </c.pem\nssl_key = </c.key\nlocal_name mx.example.com {\n ssl_cert = </m.pem\n ssl_key = </m.key\n}",
         [PAIR, {"fullchain.pem": "/m.pem", "private.key": "/m.key"}], ["127.0.0.1:993", "127.0.0.1:993 mx.example.com"]),
        ("ssl_cert = </c.pem\nssl_key = </c.key\nlocal 192.0.2.1 {\n ssl_cert = </m.pem\n ssl_key = </m.key\n}",
         [PAIR, {"fullchain.pem": "/m.pem", "private.key": "/m.key"}], ["127.0.0.1:993", ""]),
        ("ssl_cert = </c.pem\nssl_key = </c.key\nservice imap-login {\n inet_listener imaps {\n  port = 0\n }\n}",
         [PAIR], ["127.0.0.1:143 imap"]),
        ("ssl_cert = </c.pem\nssl_key = </c.key\nservice imap-login {\n inet_listener imaps { port = 9993 }\n }",
         [PAIR], ["127.0.0.1:9993"]),
        ("protocols = pop3\nssl_cert = </c.pem\nssl_key = </c.key", [PAIR], ["127.0.0.1:995"]),
        ("ssl = no\nssl_cert = </c.pem\nssl_key = </c.key", [PAIR], [""]),
        ("ssl_alt_cert = </c.pem\nssl_alt_key = </c.key", [PAIR], ["127.0.0.1:993"]),
    ],
)  # fmt: skip
def test_settings(text: str, files: list[dict[str, str]], endpoints: list[str]) -> None:
    uses = read_dovecot(host({DOVECOT: text}), DOVECOT)
    assert (files_of(uses), places(uses)) == (files, endpoints)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ssl_cert = <$tls/c.pem\nssl_key = </c.key", "is not a path"),
        ("ssl_server_cert_file = %{env:CERT}\nssl_server_key_file = /k", "is not a path"),
        ("ssl_cert = -----BEGIN CERTIFICATE-----", "within the configuration"),
        ("ssl_cert = </c.pem", "has no ssl_key"),
        ("!include missing.conf", "cannot read /etc/dovecot/missing.conf"),
    ],
)
def test_dovecots_unknowns_are_reported(text: str, why: str) -> None:
    sources = host({DOVECOT: text})
    assert read_dovecot(sources, DOVECOT) == []
    assert [why in remark.what for remark in sources.remarks] == [True]
