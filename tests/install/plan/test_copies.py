"""Copy items: which files they write, with which owner and mode, and which of them together."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from planner_world import cert, copy, plan, run, runs, writes

from certctrl.install.plan.copy_items import FileGroup, Indexer, ItemIndex, file_groups_of, is_whole
from certctrl.install.plan.values import DesiredCa, Destination, InstallPlan, Write
from certctrl.model.certificate import CertFacts
from certctrl.model.plan import CopyAction, InstallItem, ObjectType, WriteMethod


def written(found: InstallPlan) -> list[Write]:
    return [write for group in found.groups for step in group.steps for write in step.writes]


# --- which files are written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fact", "fields", "why"),
    [
        (Destination(sha256="x", mode=0o600), {}, "other bytes"),
        (Destination(sha256="private.key@1@g1", mode=0o644), {}, "mode 0644 -> 0600"),
        (Destination(sha256="private.key@1@g1", mode=0o640), {}, ""),
        (Destination(sha256="private.key@1@g1", mode=0o664, has_acl=True), {}, "mode 0664 -> 0640"),
        (Destination(sha256="private.key@1@g1", mode=0o640, has_acl=True), {"mode": 0o600}, "mode 0640 -> 0600"),
        (Destination(sha256="private.key@1@g1", mode=0o640), {"mode": 0o600}, "mode 0640 -> 0600"),
        (Destination(sha256="private.key@1@g1", mode=0o600, uid=5), {}, ""),
        (Destination(sha256="private.key@1@g1", mode=0o600, uid=5), {"owner": "www"}, "owner 5 -> 33"),
        (Destination(sha256="private.key@1@g1", mode=0o600, gid=5), {"group": "ssl"}, "group 5 -> 44"),
        (Destination(sha256="x", mode=0o644, uid=5), {"owner": "www"}, "other bytes, mode 0644 -> 0600, owner 5 -> 33"),
        (Destination(), {}, "new"),
    ],
)
def test_bytes_mode_and_owner_are_compared(fact: Destination, fields: dict[str, Any], why: str) -> None:
    found = plan([copy("c", 1, names=("private.key",), **fields)], cert(1), destinations={"/ssl/c/private.key": fact})
    assert [write.why for one in found.groups for step in one.steps for write in step.writes] == [why] * bool(why)


KEY = Write(
    item="c", cert_id=1, source="private.key", path="/ssl/c/private.key", mode=0o600, uid=None, gid=None, why="new",
    is_new=True, file_group="cert:1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("fact", "fields", "expected"),
    [
        (None, {}, {}),
        (None, {"owner": "www", "group": "ssl", "mode": 0o640}, {"uid": 33, "gid": 44, "mode": 0o640}),
        (None, {"owner": "root"}, {"uid": 0}),
        (None, {"continue_on_error": True, "write": WriteMethod.IN_PLACE}, {"tolerant": True, "in_place": True}),
        (None, {"owners": ("www",), "groups": ("ssl",), "modes": (0o400,)}, {"uid": 33, "gid": 44, "mode": 0o400}),
        (Destination(sha256="x", mode=0o640, uid=5, gid=6), {}, {"uid": 5, "gid": 6, "mode": 0o640}),
        (Destination(sha256="x", mode=0o600, uid=5, gid=6), {"owner": "www"}, {"uid": 33, "gid": 6}),
        (Destination(sha256="x", mode=0o600, uid=5, gid=6), {"group": "ssl"}, {"uid": 5, "gid": 44}),
    ],
)
def test_a_file_keeps_the_owner_and_mode_that_no_item_sets(
    fact: Destination | None, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    item = copy("c", 1, names=("private.key",), **fields)
    (write,) = written(plan([item], cert(1), destinations={"/ssl/c/private.key": fact} if fact else {}))
    found = attrs.evolve(KEY, **expected)
    if fact is not None:
        found = attrs.evolve(found, is_new=False, why=write.why)
    assert write == found


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [
        ("private.key", None, 0o600), ("private.key", 0o640, 0o640), ("private.key", 0o400, 0o400),
        ("private.key", 0o644, 0o600), ("private.key", 0o660, 0o600), ("private.key", 0o240, 0o600),
        ("chain.pem", None, 0o644), ("chain.pem", 0o600, 0o600), ("chain.pem", 0o444, 0o444),
        ("chain.pem", 0o664, 0o644), ("chain.pem", 0o755, 0o644), ("chain.pem", 0o044, 0o644),
    ],
)  # fmt: skip
def test_a_mode_stays_unless_it_is_too_open_or_the_owner_cannot_read(
    name: str, there: int | None, expected: int
) -> None:
    fact = Destination() if there is None else Destination(sha256="x", mode=there)
    (write,) = written(plan([copy("c", 1, names=(name,))], cert(1), destinations={f"/ssl/c/{name}": fact}))
    assert write.mode == expected


def test_a_mask_of_an_access_list_loses_only_excess_rights() -> None:
    def mode(name: str, there: int) -> int:
        fact = Destination(sha256="x", mode=there, has_acl=True)
        return written(plan([copy("c", 1, names=(name,))], cert(1), destinations={f"/ssl/c/{name}": fact}))[0].mode

    assert [mode("private.key", there) for there in (0o640, 0o674, 0o070)] == [0o640, 0o640, 0o440]
    assert [mode("chain.pem", there) for there in (0o644, 0o777, 0o040)] == [0o644, 0o644, 0o440]


def test_a_file_of_a_ca_belongs_to_it() -> None:
    item = copy("c", 3, ob_type=ObjectType.CA, names=("ca.pem",))
    (write,) = written(plan([item], cas={3: DesiredCa(ca_id=3, name="ca", files={"ca.pem": "x"})}))
    assert (write.cert_id, write.ca_id, write.node, write.mode) == (None, 3, "ca:3", 0o644)
    assert write.file_group == "item:c"
    (write,) = written(plan([copy("c", 1, names=("chain.pem",))], cert(1)))
    assert (write.cert_id, write.ca_id, write.node) == (1, None, "cert:1")


def test_files_that_could_not_be_made_are_left_out_with_their_dependents() -> None:
    """Its reason is in the record of the certificate, so it is neither refused nor waiting."""
    made, unmade = copy("w", 2), copy("k", 1, names=("bundle.pfx", "private.key"))
    other = ("/bin/other",)
    found = plan(
        [unmade, run("r", "k"), run("later", "r", argv=other), made, run("s", "w", argv=other)], cert(1), cert(2)
    )
    assert (writes(found), runs(found)) == (list(made.targets), [("s",)])
    assert (dict(found.blocked), dict(found.waiting), found.refusals) == ({}, {}, ())
    half = copy("f", 1, names=("fullchain.pem",))
    bare = copy("t", 1, names=("private-traditional.key",))
    assert writes(plan([bare, half, made], cert(1), cert(2))) == list(made.targets)
    everything = copy("e", 1, names=tuple(cert(1).files))
    assert writes(plan([everything], cert(1))) == list(everything.targets)
    assert not runs(plan([unmade, run("r", "k")], cert(1), examine={2})), "not examined: neither made nor missed"


# --- which are written together ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "whole"),
    [
        (("combined.pem",), True), (("chain.pem", "combined-key-last.pem"), True), (("bundle.pfx",), True),
        (("bundle.jks?alias=tomcat",), True), (("private.key", "certificate.pem"), True),
        (("fullchain.pem", "private-traditional.key"), True), (("private.key", "chain.pem"), False),
        (("private.key",), False), (("certificate.pem", "fullchain.pem"), False), (("meta.json",), False), ((), False),
    ],
)  # fmt: skip
def test_an_item_is_whole_with_a_matching_key_and_certificate(names: tuple[str, ...], whole: bool) -> None:
    assert is_whole(copy("c", 1, names=names)) is whole


def test_parts_of_one_certificate_form_a_group() -> None:
    tolerated = {"continue_on_error": True}
    items: list[InstallItem] = [
        copy("k", 1, names=("private.key",), **tolerated), copy("f", 1, names=("fullchain.pem",)),
        copy("m", 1, names=("meta.json",), **tolerated), copy("w", 1), copy("tw", 1, **tolerated),
        copy("k2", 2, names=("private.key",), **tolerated), copy("f2", 2, names=("chain.pem",), **tolerated),
        copy("k3", 3, names=("private.key",), **tolerated),
        copy("ca", 9, ob_type=ObjectType.CA, names=("ca.pem",), **tolerated), run("r", "k"),
    ]  # fmt: skip
    about = {item.id: (item.ob_id,) for item in items if item.ob_id is not None} | {"ca": ()}
    assert file_groups_of(items, about) == {
        "k": FileGroup("cert:1", False), "f": FileGroup("cert:1", False), "m": FileGroup("cert:1", False),
        "w": FileGroup("item:w", False), "tw": FileGroup("item:tw", True),
        "k2": FileGroup("cert:2", True), "f2": FileGroup("cert:2", True), "k3": FileGroup("cert:3", True),
        "ca": FileGroup("item:ca", True),
    }  # fmt: skip


def test_a_pair_in_two_steps_is_not_tolerated() -> None:
    """Commands run between two steps, so files written before them cannot be undone silently."""
    key = CopyAction(id="key", ob_id=1, sources=("private.key",), targets=("/a",), continue_on_error=True)
    late = CopyAction(
        id="cert", ob_id=1, sources=("fullchain.pem",), targets=("/b",), continue_on_error=True, depends_on=("key",)
    )
    other_half = CopyAction(id="cert", ob_id=1, sources=("fullchain.pem",), targets=("/b",), continue_on_error=True)
    about = {"key": (1,), "cert": (1,)}
    assert {file_group.tolerant for file_group in file_groups_of([key, late], about).values()} == {False}
    assert {file_group.tolerant for file_group in file_groups_of([key, other_half], about).values()} == {True}
    assert len({file_group.name for file_group in file_groups_of([key, other_half], about).values()}) == 1


# --- items of a certificate -------------------------------------------------------------------------------------------


def test_the_copies_of_a_certificate_have_its_id_or_its_name() -> None:
    ca = copy("ca", 1, ob_type=ObjectType.CA, names=("ca.pem",))
    items = [
        copy("b", None, ob_name="a1.example"), copy("a", 1), copy("d", None, ob_name="alias"), copy("other", 2), ca,
        copy("off", 1, enabled=False), copy("refused", 1, refused="unknown field"), copy("nameless", None),
        copy("e", None, ob_name="second.example"), run("r", ob_id=1), copy("f", 1, ob_name="alias"),
    ]  # fmt: skip
    index = ItemIndex.of(items)
    facts = CertFacts(cert_id=1, name="alias", domains=("a1.example", "second.example"))
    assert [item.id for item in index.copies(facts)] == ["a", "f", "d", "b"]
    assert index.copies(CertFacts(cert_id=3, name="x")) == []
    assert [ItemIndex.of(some).empty for some in (items, items[:1], items[1:2], [ca], ())] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_an_index_is_made_once_for_the_same_items() -> None:
    indexer, items = Indexer(), [copy("a", 1)]
    index = indexer.of(items)
    assert indexer.of(items) is index and index.items is items
    assert indexer.of(list(items)) is not index
