"""Install configs: exact text and hash, growing versions, invalid items refused."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plane_world import Device, World

from certctrl.plane.errors import ErrorResponse
from certctrl.plane.installs import check_items
from certctrl.protocol.wire.install_config import install_config_from_wire

COPY = {
    "id": "pair", "type": "copy", "ob_type": "cert", "ob_id": 7, "from": ["fullchain.pem", "private.key"],
    "to": ["/etc/nginx/tls/site.pem", "/etc/nginx/tls/site.key"],
}  # fmt: skip
RELOAD = {"id": "reload", "type": "exec", "cmd_argv": ["/usr/sbin/nginx", "-s", "reload"], "depends_on": ["pair"]}


def hashed(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


async def put(world: World, device: Device, items: object, query: str = "") -> Any:
    return await world.operator("PUT", f"{device.home}/install-config{query}", {"installs": items})


async def test_a_new_device_has_an_empty_config(world: World) -> None:
    device = await world.device()
    data = (await device("GET", f"{device.home}/install-config")).data
    assert (data["version"], data["installs"], data["installs_json"]) == (1, [], "[]")
    assert data["user_device_id"] == device.id
    assert install_config_from_wire(data).version == 1


async def test_put_increments_the_version_and_signals_the_device(world: World) -> None:
    device = await world.device()
    data = (await put(world, device, [COPY, RELOAD])).data
    assert data["version"] == 2
    assert data["installs"] == [COPY, RELOAD]
    assert data["installs_hash_b64"] == hashed(data["installs_json"])
    (signal,) = (await device.poll()).data["signals"]
    assert signal["type"] == "install.updated"
    assert signal["ref"] == {"config_id": data["id"], "version": 2, "installs_hash_b64": data["installs_hash_b64"]}
    fetched = (await device("GET", f"{device.home}/install-config")).data
    assert fetched == data
    assert [item.id for item in install_config_from_wire(fetched).items] == ["pair", "reload"]


async def test_the_same_items_again_change_nothing(world: World) -> None:
    device = await world.device()
    first = (await put(world, device, [COPY])).data
    cursor = (await device.poll()).data["cursor"]
    assert (await put(world, device, [COPY])).data == first
    assert (await device.poll(cursor)).status == 204


async def test_the_text_keeps_order_and_characters(world: World) -> None:
    device = await world.device()
    item = {"type": "exec", "id": "ü", "cmd_argv": ["/bin/echo", "\u2028", "</script>"], "tags": []}
    data = (await put(world, device, [item])).data
    expected = '[{"type":"exec","id":"ü","cmd_argv":["/bin/echo","\u2028","</script>"],"tags":[]}]'
    assert data["installs_json"] == expected
    install_config_from_wire(data)


async def test_etag_and_304(world: World) -> None:
    device = await world.device()
    path = f"{device.home}/install-config"
    etag = (await device("GET", path)).headers["etag"]
    assert etag.startswith('"')
    for sent in (etag, f"W/{etag}", etag.strip('"')):
        reply = await device("GET", path, headers={"if-none-match": sent})
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", etag)
    await put(world, device, [COPY])
    reply = await device("GET", path, headers={"if-none-match": etag})
    assert reply.status == 200
    assert reply.headers["etag"] != etag


async def test_both_paths_and_who_may_read(world: World) -> None:
    device, other = await world.device(), await world.device("device-number-2")
    await put(world, device, [COPY])
    own = (await device("GET", "/apiv1/devices/self/install-config")).data
    assert (await world.operator("GET", f"{device.home}/install-config")).data == own
    foreign = await other("GET", f"{device.home}/install-config")
    assert (foreign.status, foreign.key) == (403, "FORBIDDEN")
    assert (await world.stranger("GET", f"{device.home}/install-config")).status == 401
    assert (await device("PUT", f"{device.home}/install-config", {"installs": []})).status == 403


async def test_a_bare_list_is_accepted(world: World) -> None:
    device = await world.device()
    assert (await world.operator("PUT", f"{device.home}/install-config", [COPY])).data["version"] == 2


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ("x", "list"),
        ([1], "installs[0]: expected an object"),
        ([{"type": "copy"}], "installs[0].id"),
        ([COPY | {"id": True}], "installs[0].id"),
        ([COPY, COPY], "twice"),
        ([COPY | {"type": "delete"}], "installs[0].type"),
        ([COPY | {"to": ["/one"]}], "as long as from"),
        ([COPY | {"from": []}], "installs[0].from"),
        ([COPY | {"to": ["relative", "/b"]}], "absolute"),
        ([COPY | {"to": ["/a/../b", "/c"]}], "absolute"),
        ([COPY | {"to": ["/a\0", "/c"]}], "absolute"),
        ([COPY | {"to": [1, 2]}], "installs[0].to"),
        ([COPY | {"check": "nginx -t"}], "installs[0].check"),
        ([COPY | {"enabled": "yes"}], "installs[0].enabled"),
        ([COPY | {"tags": "web"}], "installs[0].tags"),
        ([COPY | {"ob_type": "key"}], "installs[0].ob_type"),
        ([COPY | {"verify": {"type": "ping"}}], "verify.type"),
        ([COPY | {"verify": {"type": "tls", "host": "x"}}], "installs[0].verify.port"),
        ([COPY | {"verify": {"type": "command", "cmd_argv": []}}], "verify.cmd_argv"),
        ([RELOAD], "which does not exist"),
        ([COPY | {"depends_on": ["reload"]}, RELOAD], "cycle"),
        ([{"id": 1, "type": "exec"}], "cmd_argv"),
        ([{"id": 1, "type": "exec", "cmd_argv": "reload"}], "cmd_argv"),
        ([{"id": 1, "type": "exec", "cmd": "true", "timeout_ms": 0}], "timeout_ms"),
        ([{"id": 1, "type": "import_ca"}], "ob_id"),
        ([COPY | {"mode": 640}], "installs[0].mode"),
        ([COPY | {"id": "local:x"}], "reserved for the host"),
    ],
)
async def test_invalid_items_are_refused_and_change_nothing(world: World, items: object, expected: str) -> None:
    device = await world.device()
    reply = await put(world, device, items)
    assert (reply.status, reply.key) == (400, "BAD_REQUEST")
    assert expected in reply.json["error"]["what"]
    assert (await device.poll()).status == 204
    assert world.plane.installs.versions([device.id])[device.id] == 1


async def test_an_unchecked_put_accepts_any_items(world: World) -> None:
    device = await world.device()
    assert (await put(world, device, [{"id": 1, "type": "wipe"}], "?unchecked=1")).data["version"] == 2
    await world.plane.installs.put(device.id, [{"id": 1, "type": "wipe-more"}], check=False)
    assert world.plane.installs.versions([device.id])[device.id] == 3


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["id", "type", "from", "to", "cmd_argv", "cmd", "depends_on", "verify", "ob_id"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.sampled_from(["copy", "exec", "import_ca", "/x"]),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
                max_leaves=5,
            ),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_the_check_never_raises_anything_but_400(items: list[Any]) -> None:
    try:
        check_items(items)
    except ErrorResponse as error:
        assert error.status == 400
