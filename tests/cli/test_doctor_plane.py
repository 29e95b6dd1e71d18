"""The doctor on the connection to the plane: the first failing step is found, later ones are skipped."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest
import trio

from certctrl.cli.doctor.finding import CheckContext, Finding
from certctrl.cli.doctor.plane import check_plane
from certctrl.errors import TlsError, TransportError
from certctrl.model.answer import Answer
from certctrl.model.config import AgentConfig, ApplicationConfig, HttpClientConfig

from .conftest import NOW
from .doctor_helpers import CONFIG, found, register


class FakeHttp:
    """Answers /health with a Date, and the poll with a given result."""

    def __init__(self, poll: Answer | Exception | None = None, *, health: object = None, skew: float = 0.0) -> None:
        self.poll = poll or Answer(204, {"etag": "1-5"}, b"")
        self.health = health or Answer(200, {"date": formatdate(NOW + skew, usegmt=True)}, b"")
        self.closed = False
        self.paths: list[str] = []

    async def request(self, _method: str, path: str, **_named: Any) -> Answer:
        self.paths.append(path)
        answer = self.health if path == "/health" else self.poll
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        self.closed = True


async def asked(context: CheckContext, http: FakeHttp, config: AgentConfig = CONFIG) -> list[Finding]:
    notes: list[Finding] = []
    await check_plane(context, config, lambda _config, _layout: http, notes.append)
    assert http.closed
    return notes


async def test_a_plane_without_problems(context: CheckContext) -> None:
    register(context.store)
    notes = await asked(context, FakeHttp())
    assert [(one.check, str(one.level)) for one in notes] == [
        ("dns", "OK"), ("tls", "OK"), ("clock", "OK"), ("token", "OK"),
    ]  # fmt: skip


def error_answer(status: int, key: str) -> Answer:
    body = b'{"error": {"code": 1, "what": "w", "key": "%s"}}' % key.encode()
    return Answer(status, {"content-type": "application/json"}, body)


@pytest.mark.parametrize(
    ("poll", "level", "words"),
    [
        (
            Answer(200, {"content-type": "application/json"}, b'{"data": {"cursor": "1-6", "signals": []}}'),
            "OK",
            "accepts the access token",
        ),
        (error_answer(401, "TOKEN_EXPIRED"), "WARN", "expired"),
        (error_answer(403, "DEVICE_REVOKED"), "FAIL", "revoked this device"),
        (error_answer(403, "OTHER"), "FAIL", "refused: 403"),
        (error_answer(409, "CURSOR_EXPIRED"), "OK", "resync"),
        (error_answer(429, "RATE_LIMITED"), "WARN", "busy (status 429)"),
        (Answer(200, {"content-type": "text/html"}, b"<html>log in</html>"), "FAIL", "no usable answer"),
        (TransportError("connection reset"), "FAIL", "connection reset"),
    ],
    ids=lambda value: getattr(value, "status", str(value)[:12]),
)
async def test_token_findings(poll: Any, level: str, words: str, context: CheckContext) -> None:
    register(context.store)
    ((said, what, fix),) = found(await asked(context, FakeHttp(poll)), "token")
    assert said == level and words in what
    assert bool(fix) == (level != "OK")
    assert "rt_x" not in what + fix and "a.b.c" not in what + fix


async def test_without_a_token_no_poll_is_sent(context: CheckContext) -> None:
    http = FakeHttp()
    assert found(await asked(context, http), "token")[0][0] == "FAIL"
    assert http.paths == ["/health"]


@pytest.mark.parametrize(
    ("skew", "level"), [(0, "OK"), (4, "OK"), (-4, "OK"), (30, "WARN"), (-30, "WARN"), (900, "FAIL")]
)
async def test_clock_skew(skew: float, level: str, context: CheckContext) -> None:
    ((said, what, _),) = found(await asked(context, FakeHttp(skew=skew)), "clock")
    assert said == level
    assert level == "OK" or f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'}" in what


@pytest.mark.parametrize("date", [None, "", "yesterday", "Fri, 03 Oct 99999 05:45:56 GMT"])
async def test_a_plane_without_a_usable_date(date: str | None, context: CheckContext) -> None:
    http = FakeHttp(health=Answer(404, {"date": date} if date is not None else {}, b""))
    notes = await asked(context, http)
    assert found(notes, "clock") == []
    assert found(notes, "tls")[0][0] == "OK", "any answer proves the connection"


async def test_an_untrusted_certificate_skips_later_checks(context: CheckContext) -> None:
    http = FakeHttp(health=TlsError("the certificate is not trusted", fix="add its CA to ca_files"))
    notes = await asked(context, http)
    assert found(notes, "tls") == [("FAIL", "the certificate is not trusted", "add its CA to ca_files")]
    assert found(notes, "token") == []


async def test_plain_http_is_a_warning(context: CheckContext) -> None:
    plain = AgentConfig(application=ApplicationConfig(server_url="http://127.0.0.1:80", allow_http_loopback=True))
    assert found(await asked(context, FakeHttp(), plain), "tls")[0][0] == "WARN"


async def test_an_unresolvable_name(context: CheckContext, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_args: object, **_named: object) -> Any:
        raise trio.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", nothing)
    ((level, what, fix),) = found(await asked(context, FakeHttp()), "dns")
    assert level == "FAIL" and "Name or service not known" in what and "resolv.conf" in fix


async def test_a_resolver_that_hangs(
    context: CheckContext, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def never(*_args: object, **_named: object) -> Any:
        await trio.sleep_forever()

    monkeypatch.setattr(trio.socket, "getaddrinfo", never)
    assert "within 5 s" in found(await asked(context, FakeHttp()), "dns")[0][1]


def with_proxy(server_url: str) -> AgentConfig:
    return AgentConfig(
        application=ApplicationConfig(server_url=server_url),
        httpclient=HttpClientConfig(proxy="http://agent:geheim@proxy.invalid:3128"),
    )


async def test_a_proxy_that_a_loopback_plane_bypasses(context: CheckContext) -> None:
    register(context.store)
    notes = await asked(context, FakeHttp(), with_proxy("https://127.0.0.1:8443"))
    ((level, what, fix),) = found(notes, "proxy")
    assert (level, what) == ("WARN", "the proxy proxy.invalid:3128 is not used: 127.0.0.1 is a loopback address")
    assert fix == "remove proxy from httpclient_config.json, or correct server_url"
    assert found(notes, "dns")[0][0] == "OK", "the plane's own name is resolved"


async def test_a_proxy_without_an_address(context: CheckContext) -> None:
    register(context.store)
    notes = await asked(context, FakeHttp(), with_proxy("https://plane.example"))
    ((level, what, fix),) = found(notes, "dns")
    assert level == "FAIL" and "cannot resolve proxy.invalid (proxy)" in what
    assert fix == "correct proxy in httpclient_config.json or /etc/resolv.conf"
    assert not found(notes, "proxy")
