"""Effective install configs: placeholders, repeated items, dependencies, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certctrl.plane.profiles.effective import EffectiveError, Merger, ProfileItems, checked_profile, json_of
from certctrl.plane.profiles.placeholders import DeviceValues

FILES = {
    "id": "files", "type": "copy", "ob_name": "www.example.com", "from": ["private.key", "fullchain.pem"],
    "to": ["/etc/tls/www.key", "/etc/tls/www.pem"],
}  # fmt: skip
EACH = {"id": "each", "type": "copy", "from": ["combined.pem"], "to": ["/etc/tls/{cert.name}.pem"]}
RELOAD = {"id": "reload", "type": "exec", "cmd_argv": ["reload", "{device.name}"], "depends_on": ["files"]}
CERTS = ((7, "www.example.com"), (9, "*.example.net"))


def device(name: str = "web-1", tags: tuple[str, ...] = (), certs: tuple[tuple[int, str], ...] = CERTS) -> DeviceValues:
    return DeviceValues(id=3, name=name, public_id="23229bf7-5172", tags=tags, certificates=certs)


def profile(*items: dict[str, Any], name: str = "web") -> ProfileItems:
    return checked_profile(name, list(items))


def merged(*profiles: ProfileItems, own: str = "[]", **of: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(Merger().merged(profiles, device(**of), own))
    return items


def test_without_profiles_the_own_text_is_unchanged() -> None:
    own = '[ {"id": 1, "type": "wipe"} ]'
    assert Merger().merged((), device(), own) == own


def test_profiles_come_in_order_and_own_items_last() -> None:
    own = json_of([RELOAD | {"id": "own", "cmd_argv": ["{device.name}"]}])
    found = merged(profile(FILES), profile(RELOAD | {"depends_on": []}, name="late"), own=own)
    assert [item["id"] for item in found] == ["files", "reload", "own"]
    assert found[1]["cmd_argv"] == ["reload", "web-1"]
    assert found[2]["cmd_argv"] == ["{device.name}"], "own items have no placeholders"


def test_every_placeholder() -> None:
    item = EACH | {
        "to": ["/{device.id}/{device.public_id}/{device.tag.env}/{cert.id}/{cert.name}"],
        "check": ["nginx", "-c", "{staged}", "${HOME}", "{}", "{{device.name}}", "{{a}}", "{ x }"],
        "verify": {"type": "tls", "host": "{device.name}.example.com", "port": 443},
    }
    (one, two) = merged(profile(item), tags=("env=prod", "web"))
    assert one["to"] == ["/3/23229bf7-5172/prod/7/www.example.com"]
    assert two["to"] == ["/3/23229bf7-5172/prod/9/_wildcard.example.net"]
    assert one["check"] == ["nginx", "-c", "{staged}", "${HOME}", "{}", "{device.name}", "{a}", "{ x }"]
    assert one["verify"]["host"] == "web-1.example.com"
    assert [(item["id"], item["ob_type"], item["ob_id"], item["ob_name"]) for item in (one, two)] == [
        ("each:7", "cert", 7, "www.example.com"), ("each:9", "cert", 9, "*.example.net"),
    ]  # fmt: skip


def test_dependencies_follow_repeated_items() -> None:
    check = {"id": "check", "type": "exec", "cmd_argv": ["check", "{cert.name}"], "depends_on": ["each"]}
    after = {"id": "after", "type": "exec", "cmd_argv": ["after"], "depends_on": ["check", "files"]}
    found = {item["id"]: item for item in merged(profile(FILES, EACH, check, after))}
    assert found["check:7"]["depends_on"] == ["each:7"]
    assert found["after"]["depends_on"] == ["check:7", "check:9", "files"]
    rest = merged(profile(FILES, EACH, check, after), certs=())
    assert [item["id"] for item in rest] == ["files", "after"]
    assert rest[1]["depends_on"] == ["files"]
    assert merged(profile(EACH, check, after | {"depends_on": ["check"]}), certs=()) == []


def test_dependencies_on_several_repeated_items_and_on_what_is_left_out() -> None:
    other = EACH | {"id": "other", "ob_id": 9, "to": ["/other/{cert.name}"]}
    link = {"id": "link", "type": "exec", "cmd_argv": ["link"], "depends_on": ["each"]}
    after = {"id": "after", "type": "exec", "cmd_argv": ["after"], "depends_on": ["files", "link", "each", "other"]}
    items = profile(FILES, EACH, other, link, after)
    found = {item["id"]: item for item in merged(items)}
    assert found["after"]["depends_on"] == ["files", "link", "each:7", "each:9", "other:9"]
    assert found["link"]["depends_on"] == ["each:7", "each:9"]
    rest = {item["id"]: item for item in merged(items, certs=())}
    assert set(rest) == {"files", "after"} and rest["after"]["depends_on"] == ["files"]


def test_a_repeated_item_may_be_for_one_certificate() -> None:
    (one,) = merged(profile(EACH | {"ob_name": "*.example.net", "to": ["/etc/tls/own.pem"], "check": ["{cert.id}"]}))
    assert (one["id"], one["check"]) == ("each:9", ["9"])
    assert [one["ob_id"] for one in merged(profile(EACH | {"ob_id": 7}))] == [7]
    assert merged(profile(EACH | {"ob_id": 8})) == []


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ({"id": 1}, "installs: expected a list"),
        ([1], "installs[0]: expected an object"),
        ([FILES, FILES], "item files of profile web has the same id as item files of profile web"),
        ([FILES | {"form": []}], "installs[0].form: unknown key; did you mean from?"),
        ([FILES | {"from": ["private.key", "fullchian.pem"]}], "did you mean fullchain.pem?"),
        ([EACH | {"to": ["/etc/{cert.nmae}"]}], "installs[0].to[0]: unknown placeholder {cert.nmae}; did you mean {cert.name}?"),
        ([EACH | {"to": ["/etc/{staged}"]}], "installs[0].to[0]: unknown placeholder {staged}"),
        ([EACH | {"to": ["/etc/{device.tag.}"]}], "unknown placeholder {device.tag.}"),
        ([EACH | {"id": "x-{cert.id}"}], "installs[0].id: contains a placeholder"),
        ([EACH | {"depends_on": ["{cert.id}"]}], "installs[0].depends_on[0]: contains a placeholder"),
        ([EACH | {"to": ["/etc/tls/all.pem"], "check": ["{cert.id}"]}], "installs[0].to[0]: is the same for each certificate"),
        ([EACH | {"to": ["{cert.name}"]}], "installs[0].to[0]: expected an absolute path"),
        ([FILES, FILES | {"id": 2}], "item 2 of profile web writes /etc/tls/www.key, as item files of profile web does"),
        ([FILES | {"to": ["/a", "/a"]}], "item files of profile web writes /a twice"),
        ([FILES | {"mode": "0644"}], "installs[0].mode: 0644 is too open: a private key at most 0640"),
        ([FILES | {"mode": [None, "0666"]}], "installs[0].mode[1]: 0666 is too open: a public file at most 0644"),
        ([{"id": "x", "type": "cpoy"}], "installs[0].type: unknown item type cpoy; did you mean copy?"),
        ([{"type": "copy"}], "installs[0].id"),
        ([FILES | {"id": f"f{n}"} for n in range(1001)], "installs: "),
    ],
)  # fmt: skip
def test_profiles_that_are_refused(items: Any, says: str) -> None:
    with pytest.raises(EffectiveError) as refused:
        checked_profile("web", items)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("profiles", "own", "of", "says"),
    [
        ([profile(FILES)], [FILES], {}, "item files of the device itself has the same id as item files of profile web"),
        ([profile(FILES)], [FILES | {"id": 2}], {}, "item 2 of the device itself writes /etc/tls/www.key, as item files of"),
        ([profile(FILES), profile(FILES, name="b")], [], {}, "item files of profile b has the same id as item files of profile web"),
        ([profile(RELOAD)], [], {}, "item reload depends on files, which does not exist"),
        ([profile(EACH)], [{"id": "x", "type": "exec", "cmd_argv": ["x"], "depends_on": ["eahc"]}], {}, "did you mean each"),
        ([profile(EACH)], [{"id": 1, "type": "wipe"}], {}, "item 1 of the device itself: type: unknown item type wipe"),
        ([profile(EACH)], [1], {}, "the device's own items are not valid"),
        ([profile(EACH | {"to": ["/{device.tag.env}/{cert.id}"]})], [], {"tags": ("env", "envy=1")}, "it has no tag env=…"),
        ([profile(RELOAD, FILES)], [], {"name": "a/../b"}, "'a/../b' cannot be the value of {device.name}"),
        ([profile(RELOAD, FILES)], [], {"name": "-rf"}, "item reload of profile web: '-rf' cannot be"),
        ([profile(RELOAD, FILES)], [], {"name": ""}, "it has no device.name"),
        ([profile(EACH)], [], {"certs": ((1, "a.example"), (2, "a.example"))}, "writes /etc/tls/a.example.pem, as item each:1"),
        ([profile(*[RELOAD | {"id": f"{p}{n}", "depends_on": []} for n in range(600)], name=p) for p in "ab"], [], {}, "1200 items are more than 1000"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(profiles: list[ProfileItems], own: list[Any], of: dict[str, Any], says: str) -> None:
    merger = Merger()
    for _ in range(2):  # the second time, it is remembered
        with pytest.raises(EffectiveError) as refused:
            merger.merged(profiles, device(**of), json_of(own))
        assert says in str(refused.value)


def test_a_config_that_agents_would_not_read_is_refused() -> None:
    many = [RELOAD | {"id": f"i{n}", "depends_on": [], "env": {"A": "x" * 600}} for n in range(800)]
    with pytest.raises(EffectiveError, match=r"the config has 1\d\d\d kB with its text, more than 1000 kB"):
        merged(profile(*many))
    assert len(merged(profile(*many[:500]))) == 500


def test_a_disabled_item_writes_nothing() -> None:
    assert len(merged(profile(FILES, FILES | {"id": "off", "enabled": False}))) == 2


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["copy", "{cert.id}", "{", "{{x}}", "/x", "exec"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["id", "type", "from", "to", "cmd_argv", "depends_on"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_anything_is_a_profile_or_refused(items: Any) -> None:
    try:
        checked_profile("web", items)
    except EffectiveError as error:
        assert str(error)
