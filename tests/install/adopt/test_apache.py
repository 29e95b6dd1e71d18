"""Apache's configuration: virtual hosts, includes, variables and chains."""

from __future__ import annotations

import pytest
from adopt_files import files_of, host, places

from certctrl.install.adopt.apache import read_apache

MAIN = "/etc/apache2/apache2.conf"
DEBIAN = """\
# Global configuration
DefaultRuntimeDir ${APACHE_RUN_DIR}
PidFile ${APACHE_PID_FILE}
ErrorLog ${APACHE_LOG_DIR}/error.log
IncludeOptional mods-enabled/*.load
Include ports.conf
<Directory />
	Options FollowSymLinks
</Directory>
IncludeOptional conf-enabled/*.conf
IncludeOptional sites-enabled/*.conf
"""
PORTS = """\
Listen 80
<IfModule ssl_module>
	Listen 443
</IfModule>
"""
SITE = """\
<IfModule mod_ssl.c>
<VirtualHost *:443>
	ServerName www.example.com:443
	ServerAlias example.com *.example.org
	SSLEngine on
	SSLCertificateFile      /etc/ssl/certs/www.pem
	SSLCertificateKeyFile   "/etc/ssl/private/www key.pem"
	<FilesMatch "\\.(?:cgi|shtml)$">
		SSLOptions +StdEnvVars
	</FilesMatch>
</VirtualHost>
</IfModule>
"""
PAIR = {"fullchain.pem": "/c.pem", "private.key": "/c.key"}
HOST = "<VirtualHost *:443>\nServerName a.example\nSSLEngine on\n{}\n</VirtualHost>"


def test_a_site_of_debian() -> None:
    sources = host({MAIN: DEBIAN, "/etc/apache2/ports.conf": PORTS, "/etc/apache2/sites-enabled/www.conf": SITE})
    (use,) = read_apache(sources, MAIN)
    assert dict(use.files) == {"fullchain.pem": "/etc/ssl/certs/www.pem", "private.key": "/etc/ssl/private/www key.pem"}
    assert str(use.at) == "/etc/apache2/sites-enabled/www.conf:6"
    assert use.names == ("www.example.com", "example.com", "*.example.org")
    assert places([use]) == ["127.0.0.1:443 www.example.com"]
    assert not sources.remarks


@pytest.mark.parametrize(
    ("text", "files"),
    [
        (HOST.format("SSLCertificateFile /c.pem\nSSLCertificateKeyFile /c.key"), [PAIR]),
        (HOST.format("sslcertificatefile /c.pem\nSSLCERTIFICATEKEYFILE \\\n  /c.key"), [PAIR]),
        (HOST.format("SSLCertificateFile /c.pem"), [{"combined.pem": "/c.pem"}]),
        (HOST.format("SSLCertificateFile /c.pem\nSSLCertificateKeyFile /c.key\nSSLCertificateChainFile /i.pem"),
         [{"certificate.pem": "/c.pem", "private.key": "/c.key", "chain.pem": "/i.pem"}]),
        (HOST.format("SSLCertificateFile /r.pem\nSSLCertificateKeyFile /r.key\nSSLCertificateFile /c.pem\n"
                     "SSLCertificateKeyFile /c.key"), [{"fullchain.pem": "/r.pem", "private.key": "/r.key"}, PAIR]),
        ("Define tls /srv/tls\nDefine name ${tls}/c\n"
         + HOST.format("SSLCertificateFile ${name}.pem\nSSLCertificateKeyFile ${name}.key"),
         [{"fullchain.pem": "/srv/tls/c.pem", "private.key": "/srv/tls/c.key"}]),
        ("ServerRoot /srv/www\n" + HOST.format("SSLCertificateFile c.pem\nSSLCertificateKeyFile c.key"),
         [{"fullchain.pem": "/srv/www/c.pem", "private.key": "/srv/www/c.key"}]),
        ("SSLCertificateFile /c.pem\nSSLCertificateKeyFile /c.key\n" + HOST.format(""), [PAIR]),
        (HOST.replace("SSLEngine on", "SSLEngine off").format("SSLCertificateFile /c.pem"), []),
        ("<VirtualHost *:80>\nSSLCertificateFile /c.pem\n</VirtualHost>", []),
        ("#" + HOST.format("SSLCertificateFile /c.pem").replace("\n", "\n#"), []),
    ],
)  # fmt: skip
def test_virtual_hosts(text: str, files: list[dict[str, str]]) -> None:
    assert files_of(read_apache(host({MAIN: text}), MAIN)) == files


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("*:8443", "127.0.0.1:8443 a.example"), ("_default_:443", "127.0.0.1:443 a.example"),
        ("[::1]:443", "::1:443 a.example"), ("192.0.2.1:443", "192.0.2.1:443 a.example"),
        ("*", "127.0.0.1:9443 a.example"), ("*:*", "127.0.0.1:9443 a.example"),
        ("[::]:443 *:443", "127.0.0.1:443 a.example"),
    ],
)  # fmt: skip
def test_endpoints(line: str, place: str) -> None:
    text = f"Listen 80\nListen 9443 https\n{HOST}".replace("*:443", line).format("SSLCertificateFile /c.pem")
    assert places(read_apache(host({MAIN: text}), MAIN)) == [place]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HOST.format("SSLCertificateFile ${CERT}\nSSLCertificateKeyFile /c.key"), "${CERT} is not a path"),
        (HOST.format("SSLCertificateFile /c.pem\nSSLCertificateKeyFile pkcs11:x"), "it is in a token"),
        ("MDomain example.com auto", "Apache itself orders"),
        (
            "<Macro tls $name>\n" + HOST.format("SSLCertificateFile /etc/$name.pem") + "\n</Macro>",
            "a macro is not read",
        ),
        ("Include ${CONF}/x.conf", "the variable is not defined"),
        ("Include missing.conf", "cannot read /etc/apache2/missing.conf"),
    ],
)
def test_what_is_not_known_is_reported(text: str, why: str) -> None:
    sources = host({MAIN: text})
    assert read_apache(sources, MAIN) == []
    assert [why in remark.what for remark in sources.remarks] == [True]


def test_red_hats_root_and_directories() -> None:
    site = HOST.format("SSLCertificateFile /c.pem\nSSLCertificateKeyFile /c.key")
    sources = host(
        {
            "/etc/httpd/conf/httpd.conf": 'ServerRoot "/etc/httpd"\nInclude conf.d\nIncludeOptional none/*.conf',
            "/etc/httpd/conf.d/deep/ssl": site,
        }
    )
    assert files_of(read_apache(sources, "/etc/httpd/conf/httpd.conf")) == [PAIR]
    assert not sources.remarks
