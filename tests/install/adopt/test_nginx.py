"""nginx's configuration: servers, inheritance, includes, quoting and variables."""

from __future__ import annotations

import pytest
from adopt_files import files_of, host, places

from certctrl.install.adopt.nginx import listen_place, read_nginx

MAIN = "/etc/nginx/nginx.conf"
DEBIAN = """\
user www-data;
worker_processes auto;
pid /run/nginx.pid;
include /etc/nginx/modules-enabled/*.conf;

events {
	worker_connections 768;
	# multi_accept on;
}

http {
	sendfile on;
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3; # Dropping SSLv3, ref: POODLE
	ssl_prefer_server_ciphers on;
	log_format main '$remote_addr - "$request" {not a block}';
	include /etc/nginx/conf.d/*.conf;
	include /etc/nginx/sites-enabled/*;
}

#mail {
#	server { listen localhost:110; ssl_certificate /no; }
#}
"""
CERTBOTS = """\
server {
    server_name www.example.com example.com;
    root /var/www/html;
    location / { try_files $uri $uri/ =404; }

    listen [::]:443 ssl ipv6only=on; # managed by Certbot
    listen 443 ssl; # managed by Certbot
    ssl_certificate /etc/letsencrypt/live/www.example.com/fullchain.pem; # managed by Certbot
    ssl_certificate_key /etc/letsencrypt/live/www.example.com/privkey.pem; # managed by Certbot
    include /etc/letsencrypt/options-ssl-nginx.conf; # managed by Certbot
}
server {
    if ($host = www.example.com) { return 301 https://$host$request_uri; }
    listen 80;
    server_name www.example.com;
    return 404;
}
"""
PAIR = {"fullchain.pem": "/c.pem", "private.key": "/c.key"}


def test_a_site_of_debian_with_certbot() -> None:
    sources = host(
        {
            MAIN: DEBIAN,
            "/etc/nginx/mime.types": "types { text/html html; }",
            "/etc/nginx/sites-enabled/default": CERTBOTS,
            "/etc/nginx/sites-enabled/.hidden": "garbage {",
            "/etc/letsencrypt/options-ssl-nginx.conf": "ssl_session_timeout 1440m;",
        }
    )
    (use,) = read_nginx(sources, MAIN)
    live = "/etc/letsencrypt/live/www.example.com"
    assert dict(use.files) == {"fullchain.pem": f"{live}/fullchain.pem", "private.key": f"{live}/privkey.pem"}
    assert str(use.at) == "/etc/nginx/sites-enabled/default:8"
    assert use.names == ("www.example.com", "example.com")
    assert places([use]) == ["127.0.0.1:443 www.example.com"]
    assert not sources.remarks


@pytest.mark.parametrize(
    ("text", "files", "endpoints"),
    [
        ("http { server { listen 443 ssl; ssl_certificate c.pem; ssl_certificate_key keys/c.key; } }",
         [{"fullchain.pem": "/etc/nginx/c.pem", "private.key": "/etc/nginx/keys/c.key"}], ["127.0.0.1:443"]),
        ("http { ssl_certificate /c.pem; ssl_certificate_key /c.key; server { listen 127.0.0.2:8443 ssl; } }",
         [PAIR], ["127.0.0.2:8443"]),
        ("http { server { listen 443 ssl; } ssl_certificate /c.pem; ssl_certificate_key /c.key; }",
         [PAIR], ["127.0.0.1:443"]),
        ("http { ssl_certificate /x; ssl_certificate_key /y; server { listen 443 ssl; ssl_certificate /c.pem; "
         "ssl_certificate_key /c.key; } }", [PAIR], ["127.0.0.1:443"]),
        ("http { server { listen 443 ssl; ssl_certificate /r.pem; ssl_certificate_key /r.key; ssl_certificate /c.pem; "
         "ssl_certificate_key /c.key; } }",
         [{"fullchain.pem": "/r.pem", "private.key": "/r.key"}, PAIR], ["127.0.0.1:443"] * 2),
        ("http { server { listen 443 ssl; ssl_certificate /one.pem; ssl_certificate_key /one.pem; } }",
         [{"combined.pem": "/one.pem"}], ["127.0.0.1:443"]),
        ("http { server { listen 80; ssl_certificate /c.pem; ssl_certificate_key /c.key; } }", [], []),
        ("http { server { listen 443; ssl on; server_name *.example.com; ssl_certificate /c.pem; "
         "ssl_certificate_key /c.key; } }", [PAIR], ["127.0.0.1:443 cert-ctrl-probe.example.com"]),
        ('http { server { listen "443" ssl; server_name "~^www\\d+$" _ .example.com; ssl_certificate \'/c.pem\'; '
         'ssl_certificate_key "/c.key"; } }', [PAIR], ["127.0.0.1:443 example.com"]),
        (r"http { server { listen 443 ssl; ssl_certificate /my\ c.pem; ssl_certificate_key '/my c\'s.key'; } }",
         [{"fullchain.pem": "/my c.pem", "private.key": "/my c's.key"}], ["127.0.0.1:443"]),
        ("http { server { listen 443 ssl proxy_protocol; listen unix:/run/x ssl; ssl_certificate /c.pem; "
         "ssl_certificate_key /c.key; } }", [PAIR], [""]),
        ("http { server { listen 443 quic; listen [::1]:443 ssl; ssl_certificate /c.pem; ssl_certificate_key /c.key; } }",
         [PAIR], ["::1:443"]),
        ("stream { server { listen 5061 ssl; ssl_certificate /c.pem; ssl_certificate_key /c.key; } }",
         [PAIR], ["127.0.0.1:5061"]),
        ("mail { ssl_certificate /c.pem; ssl_certificate_key /c.key; server { listen 143; protocol imap; starttls on; } }",
         [PAIR], ["127.0.0.1:143 imap"]),
        ("http { content_by_lua_block { t = { a = {} } } server { listen 443 ssl; ssl_certificate /c.pem; "
         "ssl_certificate_key /c.key; } }", [PAIR], ["127.0.0.1:443"]),
    ],
)  # fmt: skip
def test_servers(text: str, files: list[dict[str, str]], endpoints: list[str]) -> None:
    uses = read_nginx(host({MAIN: text}), MAIN)
    assert (files_of(uses), places(uses)) == (files, endpoints)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("/etc/tls/$ssl_server_name.pem", "is not one file"),
        ("data:$certificate", "is not one file"),
        ("engine:pkcs11:id", "is not one file"),
        ("store:file:/x", "is not one file"),
    ],
)
def test_a_variable_is_reported_and_not_guessed(value: str, why: str) -> None:
    sources = host(
        {MAIN: f"http {{ server {{ listen 443 ssl;\nssl_certificate {value};\nssl_certificate_key /k; }} }}"}
    )
    assert read_nginx(sources, MAIN) == []
    (remark,) = sources.remarks
    assert (str(remark.at), why in remark.what, bool(remark.fix)) == (f"{MAIN}:2", True, True)


def test_includes_are_relative_to_the_main_file_and_keep_their_block() -> None:
    snippet = "ssl_certificate tls/c.pem; ssl_certificate_key tls/c.key;"
    sources = host(
        {
            MAIN: "http { include sites/*.conf; }",
            "/etc/nginx/sites/a.conf": "server { listen 443 ssl; include snippets/tls; }",
            "/etc/nginx/sites/b.conf": "server { listen 444 ssl; include snippets/tls; }",
            "/etc/nginx/sites/c.bak": "server { listen 445 ssl; include snippets/tls; }",
            "/etc/nginx/snippets/tls": snippet,
        }
    )
    uses = read_nginx(sources, MAIN)
    assert places(uses) == ["127.0.0.1:443", "127.0.0.1:444"]
    assert {str(use.at) for use in uses} == {"/etc/nginx/snippets/tls:1"}
    assert files_of(uses)[0] == {"fullchain.pem": "/etc/nginx/tls/c.pem", "private.key": "/etc/nginx/tls/c.key"}


def test_a_key_is_missing() -> None:
    sources = host({MAIN: "http { server { listen 443 ssl; ssl_certificate /c.pem; } }"})
    assert read_nginx(sources, MAIN) == []
    assert "no ssl_certificate_key" in sources.remarks[0].what


def test_a_quoted_text_that_does_not_end() -> None:
    text = 'http { server { listen 443 ssl; ssl_certificate /c.pem; ssl_certificate_key /c.key; }\n root "/x; }'
    sources = host({MAIN: text})
    assert files_of(read_nginx(sources, MAIN)) == [PAIR]
    assert str(sources.remarks[0].at) == f"{MAIN}:2"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("443", ("127.0.0.1", 443)), ("*:443", ("127.0.0.1", 443)), ("[::]:443", ("::1", 443)), ("[::1]", ("::1", 80)),
        ("10.0.0.1", ("10.0.0.1", 80)), ("host:8443", ("host", 8443)), ("unix:/x", None), ("host:99999", None),
        ("host:", None), ("", ("127.0.0.1", 80)), ("1:2:x", None), ("٣", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_listening_addresses(text: str, place: tuple[str, int] | None) -> None:
    assert listen_place(text, default=80) == place
