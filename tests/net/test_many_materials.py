"""Materials of many certificates in one answer: items, refusals of single ones, and unusable answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from plane_answers import FakeHttp, ok, page, plane_of, refusal

from certctrl.errors import BadAnswerError, MaterialError, PlaneError
from certctrl.model.certificate import DeployMaterials
from certctrl.model.features import BATCH_FETCH
from certctrl.net.control_plane import UnsupportedByPlane
from certctrl.protocol.wire.answer import BATCH_CAP, BUNDLE_CAP
from certctrl.protocol.wire.certificates import Fetched

PATH = "/apiv1/devices/self/deploy-materials"
SEALED = {"enc_scheme": "aes256gcm", "enc_privkey_b64": "c2VjcmV0", "certificate_pem": "PEM", "chain_pem": "C"}


def good(cert_id: int, **changes: object) -> dict[str, Any]:
    return {"cert_id": cert_id, "status": 200, "data": SEALED | changes}


def bad(cert_id: int, status: object, key: str = "", **params: object) -> dict[str, Any]:
    return {"cert_id": cert_id, "status": status, "error": {"code": 1, "what": "no", "key": key, "params": params}}


async def fetched(*items: object, wanted: tuple[int, ...] = (1, 2, 3)) -> dict[int, Fetched]:
    return await plane_of(FakeHttp(ok([*items]))).fetch_many_materials("t", dict.fromkeys(wanted, ""))


async def test_one_request_names_all_certificates() -> None:
    http = FakeHttp(ok([good(3), good(1)]))
    found = await plane_of(http).fetch_many_materials("t", {3: "", 1: ""})
    (sent,) = http.sent
    assert (sent.method, sent.path, sent.json, sent.cap) == ("POST", PATH, {"cert_ids": [3, 1]}, BATCH_CAP)
    assert sent.headers["authorization"] == "Bearer t"
    assert {number: type(one) for number, one in found.items()} == {1: DeployMaterials, 3: DeployMaterials}


async def test_each_item_has_its_own_refusal() -> None:
    found = await fetched(bad(1, 409, "WRAP_PENDING"), good(2), bad(3, 410, "CERT_REVOKED"))
    assert isinstance(found[1], PlaneError) and (found[1].status, found[1].key) == (409, "WRAP_PENDING")
    assert isinstance(found[2], DeployMaterials)
    assert isinstance(found[3], PlaneError) and found[3].status == 410


async def test_etags_are_sent_and_kept() -> None:
    http = FakeHttp(
        ok([{"cert_id": 1, "status": 304, "etag": "a"}, good(2) | {"etag": "new"}, good(3) | {"etag": 'x"y'}])
    )
    found = await plane_of(http).fetch_many_materials("t", {1: "a", 2: "old", 3: ""})
    assert http.sent[0].json == {"cert_ids": [1, 2, 3], "etags": {"1": "a", "2": "old"}}
    assert found[1] is None
    assert isinstance(found[2], DeployMaterials) and found[2].etag == "new"
    assert isinstance(found[3], DeployMaterials) and found[3].etag == ""
    assert await fetched({"cert_id": 1, "status": 304}) == {}, "nothing was known"


@pytest.mark.parametrize(
    "item",
    [
        bad(1, 503, "ANSWER_FULL"), bad(1, 500), bad(1, 401), bad(1, 400), bad(1, True), bad(1, "404"),
        {"cert_id": 1, "status": 404}, {"cert_id": 1, "status": 200}, {"cert_id": 1}, good(1, certificate_pem=""),
        {"cert_id": 1, "status": 200, "data": {k: v for k, v in SEALED.items() if k != "chain_pem"}},
    ],
    ids=str,
)  # fmt: skip
async def test_what_is_not_final_is_left_to_a_request_of_its_own(item: object) -> None:
    assert set(await fetched(item, good(2))) == {2}


async def test_material_that_does_not_fit_fails_alone() -> None:
    blank = "A" * 64
    found = await fetched(good(1, enc_scheme="rot13"), good(2, enc_data_key_b64=blank), good(3, chain_pem=7))
    assert isinstance(found[1], MaterialError)
    assert isinstance(found[2], PlaneError) and found[2].key == "WRAP_PENDING"
    assert isinstance(found[3], BadAnswerError)
    found = await fetched(good(1, other="x" * BUNDLE_CAP), good(2))
    assert isinstance(found[1], BadAnswerError) and isinstance(found[2], DeployMaterials)


@pytest.mark.parametrize("items", [[good(4)], [good(1), good(1)], [{}], [None], [good(True)], [good(1)] * 4, "x", {}])
async def test_answers_about_something_else_are_unusable(items: object) -> None:
    with pytest.raises(BadAnswerError, match="materials"):
        await plane_of(FakeHttp(ok(items))).fetch_many_materials("t", {1: "", 2: "", 3: ""})


@pytest.mark.parametrize("answer", [refusal(404, "NOT_FOUND"), refusal(405), page(501)])
async def test_a_plane_that_lacks_it_after_all_is_not_asked_again(answer: Any) -> None:
    plane = plane_of(FakeHttp(answer))
    plane.features = frozenset({BATCH_FETCH, "delta"})
    with pytest.raises(UnsupportedByPlane):
        await plane.fetch_many_materials("t", {1: "", 2: ""})
    assert plane.features == {"delta"}


async def test_errors_name_no_secret() -> None:
    found = await fetched(good(1, private_key_pem="geheim", enc_scheme=["geheim"]))
    assert "geheim" not in str(found[1]) and "c2VjcmV0" not in repr(found) and json.dumps(str(found))
