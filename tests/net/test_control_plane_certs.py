"""Certificates and their materials: requests, paging, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from plane_answers import HTML, FakeHttp, Sent, ok, page, plane_of, refusal

from certctrl.errors import BadAnswerError, PlaneError
from certctrl.model.answer import Answer
from certctrl.net.calls import LARGE_BODY, parsed
from certctrl.net.control_plane import MAX_CERTIFICATES

LIST = "/apiv1/devices/self/certificates"


def row(number: int, **fields: object) -> dict[str, Any]:
    return {"id": number, "domain_name": f"c{number}.example", **fields}


async def test_all_pages_of_the_certificate_list_are_read() -> None:
    numbers = list(range(1, 1201))

    def pages(sent: list[Sent]) -> Callable[[], Answer]:
        def answer() -> Answer:
            after = sent[-1].query["after_id"]
            return ok([row(n) for n in numbers if n > after][: sent[-1].query["limit"]])

        return answer

    http = FakeHttp()
    http.by_path[LIST] = pages(http.sent)
    found = await plane_of(http).fetch_certificates("t")
    assert [one.id for one in found] == numbers
    assert [sent.query["after_id"] for sent in http.sent] == [0, 500, 1000]


async def test_the_certificate_list_of_a_plane_without_paging() -> None:
    everything = ok([row(n) for n in range(900, 0, -1)])
    http = FakeHttp(everything, everything)
    assert len(await plane_of(http).fetch_certificates("t")) == 900
    assert len(http.sent) == 2


async def test_one_row_that_does_not_fit_fails_the_whole_list() -> None:
    """A skipped row would mean "unassigned", and its certificate would be withdrawn."""
    for broken in ({"id": 2}, {"id": True, "domain_name": "x"}, "x", None):
        with pytest.raises(BadAnswerError):
            await plane_of(FakeHttp(ok([row(1), broken]))).fetch_certificates("t")
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(ok({"1": row(1)}))).fetch_certificates("t")


async def test_an_endless_list_is_a_bad_answer() -> None:
    start = iter(range(1, 10**9, 500))
    http = FakeHttp(by_path={LIST: lambda: (lambda first: ok([row(first + n) for n in range(500)]))(next(start))})
    with pytest.raises(BadAnswerError, match="does not end"):
        await plane_of(http).fetch_certificates("t")
    assert len(http.sent) <= MAX_CERTIFICATES // 500 + 1


async def test_a_list_of_more_names_than_memory_allows_is_a_bad_answer() -> None:
    """Lists that several handlers want are read one after another."""
    start = iter(range(1, 10**9, 500))
    sans = [f"name-{n}.example" for n in range(90)]

    def answer() -> Answer:
        first = next(start)
        return ok([row(first + n, sans=sans) for n in range(500)])

    http = FakeHttp(by_path={LIST: answer})
    plane = plane_of(http)

    async def fetch() -> None:
        with pytest.raises(BadAnswerError, match="more than 12 MiB of memory"):
            await plane.fetch_certificates("t")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        nursery.start_soon(fetch)
    first, second = (i for i, sent in enumerate(http.sent) if sent.query["after_id"] == 0)
    assert (first, second) == (0, len(http.sent) // 2)


async def test_rows_of_the_list_keep_no_certificates() -> None:
    found = await plane_of(FakeHttp(ok([row(1, certificate_pem="PEM", chain_pem="PEM")]))).fetch_certificates("t")
    assert found[0].certificate_pem is None and found[0].chain_pem is None


async def test_large_answers_are_parsed_one_by_one() -> None:
    """Parsed, each may need many times the memory of its bytes."""
    running = most = 0

    def parse() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked)
        running -= 1

    answer = Answer(200, {}, b" " * LARGE_BODY)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(parsed, answer, parse)
    assert most == 1


async def test_a_page_with_too_many_certificates_is_unusable_as_a_whole() -> None:
    text = '{"data":[' + ",".join('{"id":1,"domain_name":"a"}' for _ in range(MAX_CERTIFICATES + 1)) + "]}"
    answer = Answer(200, {"content-type": "application/json"}, text.encode())
    with pytest.raises(BadAnswerError, match="more than 20000 certificates"):
        await plane_of(FakeHttp(answer)).fetch_certificates("t")


async def test_a_certificate_must_be_the_requested_one() -> None:
    found = await plane_of(FakeHttp(ok(row(4, certificate_pem="PEM")))).fetch_certificate("t", 4)
    assert found.certificate_pem == "PEM"
    with pytest.raises(BadAnswerError, match="requested certificate 4, got 5"):
        await plane_of(FakeHttp(ok(row(5)))).fetch_certificate("t", 4)


MATERIALS = "/apiv1/devices/self/certificates/4/deploy-materials"
BUNDLE = "/apiv1/devices/self/certificates/4/bundle"
DETAIL = "/apiv1/devices/self/certificates/4"
SEALED = {"enc_scheme": "aes256gcm", "enc_privkey_b64": "c2VjcmV0"}


async def test_complete_materials_need_one_request() -> None:
    for chain in ("CHAIN", ""):
        http = FakeHttp(ok(SEALED | {"certificate_pem": "PEM", "chain_pem": chain}))
        found = await plane_of(http).fetch_materials("t", 4)
        assert (found.certificate_pem, found.chain_pem) == ("PEM", chain or None)
        assert [sent.path for sent in http.sent] == [MATERIALS]
        assert http.sent[0].cap == 256 * 1024


async def test_missing_pem_texts_come_from_the_detail() -> None:
    detail = ok(row(4, certificate_pem="PEM", chain_pem="CHAIN", serial_number="04:ab"))
    found = await plane_of(FakeHttp(by_path={MATERIALS: ok(SEALED), DETAIL: detail})).fetch_materials("t", 4)
    assert (found.certificate_pem, found.chain_pem, found.serial_number) == ("PEM", "CHAIN", "04:ab")
    assert found.enc_privkey_b64 == "c2VjcmV0"


async def test_the_older_path_of_materials_is_used_from_then_on() -> None:
    whole = ok(SEALED | {"enc_scheme": 1, "certificate_pem": "PEM", "chain_pem": "C"})
    http = FakeHttp(by_path={MATERIALS: page(404), BUNDLE: whole})
    plane = plane_of(http)
    for _ in range(2):
        assert (await plane.fetch_materials("t", 4)).enc_scheme == "aes256gcm"
    assert [sent.path for sent in http.sent] == [MATERIALS, BUNDLE, BUNDLE]


@pytest.mark.parametrize(
    ("status", "key"), [(409, "WRAP_PENDING"), (403, "EXPORT_FORBIDDEN"), (410, ""), (404, "NOT_FOUND")]
)
async def test_refused_materials_keep_the_error_key(status: int, key: str) -> None:
    with pytest.raises(PlaneError) as caught:
        await plane_of(FakeHttp(by_path={MATERIALS: refusal(status, key), BUNDLE: page(404)})).fetch_materials("t", 4)
    assert (caught.value.status, caught.value.key) == (status, key)


async def test_a_ca() -> None:
    http = FakeHttp(ok({"id": 3, "name": "lab", "ca_certificate_pem": "PEM"}))
    assert (await plane_of(http).fetch_ca("t", 3)).ca_certificate_pem == "PEM"
    assert http.sent[0].path == "/apiv1/devices/self/cas/3/bundle"


@pytest.mark.parametrize(
    "answer", [ok({"id": 1, "status": "queued"}, 202), ok(None), ok([], 201), Answer(204, {}, b"")]
)
async def test_a_renewal_may_be_accepted_in_any_way(answer: Answer) -> None:
    http = FakeHttp(answer)
    await plane_of(http).request_renewal("t", 7, 4, "expiry guard")
    assert http.sent[0].path == "/apiv1/users/7/certificates/4/issues"
    assert http.sent[0].json == {"action": "renew", "reason": "expiry guard"}


async def test_a_renewal_needs_a_plane_and_a_user() -> None:
    with pytest.raises(BadAnswerError):
        await plane_of(FakeHttp(HTML)).request_renewal("t", 7, 4)
    http = FakeHttp()
    with pytest.raises(BadAnswerError, match="contains no user id"):
        await plane_of(http).request_renewal("t", None, 4)
    assert not http.sent


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_plane_without_a_list_of_cas(status: int) -> None:
    assert await plane_of(FakeHttp(refusal(status))).fetch_cas("t") is None
    assert await plane_of(FakeHttp(ok([]))).fetch_cas("t") == {}


async def test_a_large_list_is_parsed_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways give the same answer and the same error."""
    threads: list[int] = []
    in_thread = trio.to_thread.run_sync

    async def counted(*args: Any, **options: Any) -> Any:
        threads.append(1)
        return await in_thread(*args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    small, large = ok([row(1)]), ok([row(1, unknown="x" * LARGE_BODY)])
    assert await plane_of(FakeHttp(small)).fetch_certificates("t") == (
        await plane_of(FakeHttp(large)).fetch_certificates("t")
    )
    assert threads == [1]
    with pytest.raises(PlaneError, match="no"):
        await plane_of(FakeHttp(refusal(403, what="no" * LARGE_BODY))).fetch_certificates("t")
    assert threads == [1, 1]
