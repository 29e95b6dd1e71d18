"""The install config: accepted or refused as a whole."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_items import CA, COPY, EXEC, config, installs_hash, refusal

from certctrl.errors import CertctrlError, PlanError
from certctrl.model.plan import CopyAction, ExecAction, ImportCaAction
from certctrl.protocol.wire.canonical import text_hash
from certctrl.protocol.wire.install_config import install_config_from_wire, items_from_operator

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


# --- the document ------------------------------------------------------------------------------------------


def test_a_whole_config() -> None:
    found = install_config_from_wire(config([COPY, EXEC, CA], updated_at="2025-10-03T05:45:56Z"))
    assert (found.id, found.version, found.updated_at) == (9, 6, "2025-10-03T05:45:56Z")
    assert found.installs_hash_b64 == installs_hash([COPY, EXEC, CA])
    copy, run, ca = found.items
    assert copy == CopyAction(
        id="1", sources=("private.key", "fullchain.pem"), targets=("/a.key", "/a.pem"), ob_type="cert", ob_id=7
    )
    assert run == ExecAction(id="2", cmd_argv=("/usr/sbin/nginx", "-s", "reload"), depends_on=("1",))
    assert ca == ImportCaAction(id="3", ob_type="ca", ob_id=4)


def test_alternative_spellings() -> None:
    data = config([COPY], updated_at=1_700_000_000, device_id=5)
    data["installs_hash"] = data.pop("installs_hash_b64")
    found = install_config_from_wire(data)
    assert found.updated_at == "2023-11-14T22:13:20Z"
    assert install_config_from_wire(config([])).items == ()


@pytest.mark.parametrize("spell", [str, lambda h: h.rstrip("="), lambda h: h.replace("+", "-").replace("/", "_")])
def test_hash_spellings(spell: Any) -> None:
    for n in range(8):  # some of them hold + and /
        items = [COPY | {"tags": [f"t{n}"]}]
        assert install_config_from_wire(config(items, installs_hash_b64=spell(installs_hash(items)))).items


@pytest.mark.parametrize(
    "wrong",
    ["", None, "x", "!!!!", "AAAA", base64.b64encode(bytes(32)).decode(), "é", "A" * 300, installs_hash([]) + "A"],
)
def test_a_wrong_hash_refuses_everything(wrong: object) -> None:
    assert refusal(config([COPY], installs_hash_b64=wrong)).reason in ("hash", "schema")
    text = json.dumps([COPY])
    assert refusal(config([COPY], installs_json=text, installs_hash_b64=wrong)).reason in ("hash", "schema")


@pytest.mark.parametrize("more", ["!!!!", "\n\n\n\n", "    "])
def test_a_hash_with_other_characters_than_base64_is_refused(more: str) -> None:
    digest = installs_hash([COPY])
    for spelt in (more + digest, digest[:8] + more + digest[8:]):
        assert refusal(config([COPY], installs_hash_b64=spelt)).reason == "hash"


REFUSALS: list[tuple[Any, str, str]] = [
    ({}, "schema", "install config.version: missing"),
    ([], "schema", "install config: expected an object, got a list"),
    ({"version": 1, "installs": 5}, "schema", "install config.installs: expected a list, got a whole number"),
    ({"version": 1, "installs_json": "{"}, "schema", "install config.installs_json: not valid JSON"),
    ({"version": 1, "installs_json": "{}"}, "schema", "install config.installs_json: expected a list, got an object"),
    ({"version": 1, "installs": [{"id": 1}]}, "hash", "the install config has no hash"),
    ({"version": 1, "installs": [{"id": 1}], "installs_hash": "x"}, "hash", "does not match its hash"),
    (
        {"version": 1, "installs": [float("inf")], "installs_hash": "x"},
        "hash",
        "cannot be hashed: JSON has neither NaN",
    ),
    (config([{"type": "copy"}]), "schema", "installs[0].id: missing"),
]


@pytest.mark.parametrize(("data", "reason", "why"), REFUSALS)
def test_a_refused_config_says_why(data: object, reason: str, why: str) -> None:
    error = refusal(data)
    assert (error.reason, why in str(error)) == (reason, True)


@pytest.mark.parametrize("more", [{}, {"installs": None}, {"installs": ""}, {"installs": []}])
def test_a_device_without_a_config(more: dict[str, Any]) -> None:
    found = install_config_from_wire({"id": 0, "version": 3} | more)
    assert (found.absent, found.items, found.installs_hash_b64) == (True, (), "")


@given(st.sampled_from(["id", "type", "from", "to", "ob_id"]), st.integers(0, 9))
def test_one_changed_value_breaks_the_hash(name: str, value: int) -> None:
    data = config([COPY])
    data["installs"] = [COPY | {name: value}]
    if data["installs"] != [COPY]:
        assert refusal(data).reason == "hash"


def test_only_the_hashed_text_counts() -> None:
    text = ' [ {"type":"exec",  "id":2,"cmd_argv":["/x"]} ] '
    data = {"id": 1, "version": 1, "installs_json": text, "installs_hash_b64": text_hash(text)}
    assert install_config_from_wire(data).items[0].id == "2"
    same = [{"id": 2, "type": "exec", "cmd_argv": ["/x"]}]
    assert install_config_from_wire(data | {"installs": same}).items[0].id == "2"
    assert refusal(data | {"installs": [{"id": 2, "type": "exec", "cmd_argv": ["/evil"]}]}).reason == "hash"
    # the hash of the list is not the hash of the text
    assert refusal(data | {"installs_hash_b64": installs_hash(same)}).reason == "hash"


@pytest.mark.parametrize("text", ["", "{", "null", "{}", "[NaN]", '["' + "\\ud800" + '"]', "[" * 5000])
def test_hashed_text_that_is_not_a_list_of_items(text: str) -> None:
    data = {"id": 1, "version": 1, "installs_json": text, "installs_hash_b64": text_hash(text)}
    assert refusal(data).reason in ("schema", "hash")


@pytest.mark.parametrize(
    "change",
    [{"id": "x"}, {"id": -1}, {"version": None}, {"version": -1}, {"version": 2**53}, {"version": 1.0},
     {"version": True}, {"installs": {}}, {"installs": None}, {"installs": "[]"}, {"installs_json": 5}],
)  # fmt: skip
def test_a_document_that_does_not_fit(change: dict[str, Any]) -> None:
    assert refusal(config([COPY]) | change).reason == "schema"


@pytest.mark.parametrize("data", [None, [], "x", 5, {}])
def test_not_a_document(data: object) -> None:
    assert refusal(data).reason in ("schema", "hash")


def test_too_many_items() -> None:
    assert len(install_config_from_wire(config([CA | {"id": n} for n in range(1000)])).items) == 1000
    assert refusal(config([CA | {"id": n} for n in range(1001)])).reason == "schema"
    text = json.dumps([CA | {"id": n} for n in range(1001)])
    data = {"id": 1, "version": 1, "installs_json": text, "installs_hash_b64": text_hash(text)}
    assert refusal(data).reason == "schema"


@pytest.mark.parametrize("backwards", [False, True])
def test_a_long_chain_of_dependencies(backwards: bool) -> None:
    def chain(length: int) -> list[dict[str, Any]]:
        items = [CA | {"id": n, "depends_on": [n - 1] * (n > 0)} for n in range(length)]
        return items[::-1] if backwards else items

    assert len(install_config_from_wire(config(chain(32))).items) == 32
    assert refusal(config(chain(33))).reason == "depth"
    with pytest.raises(PlanError) as caught:
        items_from_operator(chain(33))
    assert caught.value.reason == "depth"


ACTIONS = {"copy": CopyAction, "exec": ExecAction, "import_ca": ImportCaAction}


@given(
    JSON
    | st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("id", "from", "to", "cmd", "verify", "env"), JSON)
        | {"type": st.sampled_from(("copy", "exec", "import_ca"))},
    )
    | st.dictionaries(
        st.sampled_from(("id", "type", "cmd_argv", "env", "verify", "enabled", "tags")), JSON, max_size=1
    ).map(lambda change: {"id": "a", "type": "exec", "cmd_argv": ["/bin/true"]} | change)
)
def test_any_item_is_accepted_or_refused(item: Any) -> None:
    try:
        (found,) = install_config_from_wire(config([item])).items
        assert found.id == str(item["id"]) and found.enabled is (item.get("enabled") is not False)
        assert found.refused or isinstance(found, ACTIONS[item["type"]])
    except CertctrlError as error:
        assert isinstance(error, PlanError)
    except ValueError:  # the hash itself: infinity or a lone surrogate
        with pytest.raises(ValueError):
            installs_hash([item])
