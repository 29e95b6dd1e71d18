"""JSON answers: limits and messages of the envelope, and dates on hosts in any time zone."""

from __future__ import annotations

import pytest
from wire_answers import HTML, answer, error

from certctrl.errors import BadAnswerError
from certctrl.model.answer import Answer
from certctrl.protocol.wire.answer import data_of, http_date, object_of, parse_error

LONG = "application/" + "x" * 60


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ({"content-type": "text/html"}, "text/html"),
        ({"content-type": "text/html\x1b"}, "text/html\\x1b"),
        ({"content-type": LONG[:60]}, LONG[:60]),
        ({"content-type": LONG[:61]}, LONG[:59] + "…"),
        ({"content-type": ""}, "no content type"),
        ({}, "no content type"),
    ],
)
def test_an_answer_without_json_names_its_content_type(headers: dict[str, str], kind: str) -> None:
    with pytest.raises(BadAnswerError) as caught:
        object_of(Answer(502, headers, HTML.encode()))
    assert caught.value.what == f"status 502 came with {kind} instead of JSON"
    assert caught.value.fix and "captive portal" in caught.value.fix


def test_a_body_may_be_as_large_as_the_limit() -> None:
    whole = answer(200, {"data": "x"})
    assert data_of(whole, cap=len(whole.body)) == "x"
    with pytest.raises(BadAnswerError, match=f"larger than {len(whole.body) - 1} bytes"):
        data_of(whole, cap=len(whole.body) - 1)


@pytest.mark.parametrize(("status", "success"), [(199, False), (200, True), (299, True), (300, False)])
def test_success_statuses(status: int, success: bool) -> None:
    if success:
        assert data_of(answer(status, {"data": 1})) == 1
    else:
        with pytest.raises(BadAnswerError, match=f"^status {status} is not a success$"):
            data_of(answer(status, {"data": 1}))


@pytest.mark.parametrize(("status", "redirects"), [(300, True), (302, True), (399, True), (400, False)])
def test_a_redirect_says_how_to_fix_it(status: int, redirects: bool) -> None:
    if redirects:
        with pytest.raises(BadAnswerError, match=rf"redirects \(status {status}\)") as caught:
            parse_error(error(status))
        assert caught.value.fix and "server_url" in caught.value.fix
    else:
        assert parse_error(error(status)).status == status


@pytest.mark.parametrize("key", [None, 5, ["X"], ""])
def test_an_error_without_a_usable_key_has_none(key: object) -> None:
    assert parse_error(error(409, key)).key == ""


@pytest.mark.parametrize(
    ("sent", "code"),
    [(7, 7), (-7, -7), (2**31 - 1, 2**31 - 1), (1 - 2**31, 1 - 2**31), (2**31, 0), (-(2**31), 0), ("7", 0), (True, 0)],
)
def test_codes_are_integers_of_32_bits(sent: object, code: int) -> None:
    assert parse_error(error(409, "", sent)).code == code


@pytest.mark.usefixtures("time_zone")
@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Wed, 15 Jan 2025 00:13:20 GMT", 1_736_900_000),
        ("Thursday, 01-Jan-70 00:00:00 GMT", 0),
        ("Tuesday, 01-Jan-69 00:00:00 GMT", 3_124_224_000),
        ("Wed, 15 Jan 2025 23:59:60 GMT", 1_736_985_600),
        ("Wed, 15 Jan 2025 23:59:61 GMT", None),
        ("Wed, 15 Jan 2025 23:60:00 GMT", None),
        ("Wed, 15 Jan 2025 24:00:00 GMT", None),
    ],
)
def test_dates_do_not_depend_on_the_time_zone_of_the_host(text: str, seconds: int | None) -> None:
    assert http_date(text) == seconds
