"""From places that read files to certificates in use, and to items that take them over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from adopt_files import certificate, host, private_key

from certctrl.install.adopt.certbot import Lineage, read_certbot
from certctrl.install.adopt.given import read_given
from certctrl.install.adopt.in_use import InUse, certificates_in_use
from certctrl.install.adopt.proposal import HostFacts, Known, Proposal, Target, propose
from certctrl.install.adopt.sources import Sources
from certctrl.install.adopt.uses import AS_THEY_ARE, At, Service, Use, pair, probed
from certctrl.protocol.wire.install_config import items_from_local

WWW = ("www.example.com", "example.com")
PAIR = {"/tls/c.pem": certificate(*WWW), "/tls/c.key": private_key()}
RELOADS = {service: ("/usr/bin/systemctl", "reload", f"{service}.service") for service in Service}
CHECKS = {service: (f"/lib/check-{service}", "{staged}") for service in Service}


def use(service: Service | None, *files: tuple[str, str], names: tuple[str, ...] = (), port: int = 443) -> Use:
    endpoint = probed("127.0.0.1", port, names) if service is not None else None
    return Use(service=service, at=At("/etc/conf", port), files=files, names=names, endpoint=endpoint)


NGINX = use(Service.NGINX, *pair("/tls/c.pem", "/tls/c.key"), names=WWW)


def in_use(sources: Sources, *uses: Use, lineages: tuple[Lineage, ...] = ()) -> list[InUse]:
    return certificates_in_use(sources.files, uses, lineages)


def proposed(found: list[InUse], **facts: Any) -> Proposal:
    given = {
        "config_dir": "/etc/cert-ctrl",
        "items": (),
        "taken": {},
        "commands": {},
        "known": (),
        "reloads": RELOADS,
        "checks": CHECKS,
        "target": lambda path: Target(mode=0o600 if path.endswith(".key") else 0o644),
    }
    made = propose(found, HostFacts(**(given | facts)))
    items_from_local(made.items, strict=True)
    return made


# --- certificates in use ----------------------------------------------------------------------------------------------


def test_facts_of_a_certificate_in_use() -> None:
    (found,) = in_use(host(PAIR), NGINX)
    assert found.leaf is not None and not found.fault
    assert (found.names, found.leaf.issuer, found.leaf.key) == (WWW, "Test CA", "ECDSA secp256r1")
    assert dict(found.files) == {"fullchain.pem": "/tls/c.pem", "private.key": "/tls/c.key"}


def test_services_that_read_the_same_files_share_a_certificate() -> None:
    dovecot = use(Service.DOVECOT, *pair("/link.pem", "/tls/c.key"))
    (found,) = in_use(host(PAIR, {"/link.pem": "/tls/c.pem"}), NGINX, dovecot)
    assert [one.service for one in found.uses] == [Service.NGINX, Service.DOVECOT]


def test_a_file_for_two_purposes_gets_the_larger_contents() -> None:
    leaf = use(Service.APACHE, ("certificate.pem", "/tls/c.pem"), ("private.key", "/tls/c.key"))
    (found,) = in_use(host(PAIR), leaf, NGINX)
    assert dict(found.files)["fullchain.pem"] == "/tls/c.pem"
    both = {"/one.pem": private_key() + certificate(*WWW)}
    (found,) = in_use(
        host(both),
        use(Service.HAPROXY, ("combined.pem", "/one.pem")),
        use(Service.NGINX, *pair("/one.pem", "/one.pem")),
    )
    assert dict(found.files) == {"combined.pem": "/one.pem"}


def test_groups_that_a_later_place_joins() -> None:
    files = {**PAIR, "/copy.pem": certificate(*WWW), "/copy.key": private_key()}
    joins = use(Service.DOVECOT, *pair("/tls/c.pem", "/copy.key"))
    found = in_use(host(files), NGINX, use(Service.APACHE, *pair("/copy.pem", "/copy.key")), joins)
    assert len(found) == 1 and len(found[0].files) == 4


@pytest.mark.parametrize("key", ["/h/a.pem.key", "/h/a.key"])
def test_haproxys_key_in_a_file_next_to_it(key: str) -> None:
    sources = host({"/h/a.pem": certificate(*WWW), key: private_key()})
    (found,) = in_use(sources, use(Service.HAPROXY, ("combined.pem", "/h/a.pem")))
    assert dict(found.files) == {"fullchain.pem": "/h/a.pem", "private.key": key} and not found.fault


def test_postfixs_list_of_files() -> None:
    files = {
        "/k": private_key(),
        "/c": certificate(*WWW),
        "/b": private_key(1, "rsa") + certificate(*WWW, number=1, kind="rsa"),
    }
    chains = use(Service.POSTFIX, *((AS_THEY_ARE, path) for path in files))
    found = in_use(host(files), chains)
    assert [dict(one.files) for one in found] == [{"fullchain.pem": "/c", "private.key": "/k"}, {"combined.pem": "/b"}]
    assert not any(one.fault for one in found)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"/tls/c.pem": None}, "cannot be read: No such file"),
        ({"/tls/c.key": None}, "cannot be read: No such file"),
        ({"/tls/c.pem": b"hello"}, "has no certificate and no key"),
        ({"/tls/c.pem": certificate(*WWW)[:200] + b"\n-----END CERTIFICATE-----\n"}, "cannot be read"),
        ({"/tls/c.key": private_key(1)}, "do not belong together"),
        ({"/tls/c.key": private_key(0, password=b"secret")}, "encrypted key"),
        ({"/tls/c.key": certificate(*WWW)}, "has no private key"),
        ({"/tls/c.key": private_key()[:60] + b"\n-----END PRIVATE KEY-----\n"}, "key that cannot be read"),
        ({"/tls/c.pem": private_key()}, "has no certificate"),
        ({"/tls/c.pem": certificate()}, "has no DNS name"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_over(changes: Mapping[str, bytes | None], fault: str) -> None:
    files = {path: data for path, data in {**PAIR, **changes}.items() if data is not None}
    (found,) = in_use(host(files), NGINX)
    assert fault in found.fault and found.fix
    assert proposed([found]).left == (found,)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/tls/a\nb.pem", "not printable"),
        ("/tls/\udcff.pem", "not printable"),
        ("/etc/ssl/ssl-cert-snakeoil.pem", "ssl-cert"),
    ],
)
def test_paths_that_are_refused(path: str, fault: str) -> None:
    (found,) = in_use(host({path: certificate(*WWW), "/k": private_key()}), use(Service.NGINX, *pair(path, "/k")))
    assert fault in found.fault
    assert "\n" not in found.fault


def test_a_key_of_two_certificates() -> None:
    files = {**PAIR, "/tls/d.pem": certificate("d.example")}
    (found,) = in_use(host(files), NGINX, use(Service.NGINX, *pair("/tls/d.pem", "/tls/c.key")))
    assert "share a key" in found.fault


def test_a_key_never_appears_in_what_is_found() -> None:
    (found,) = in_use(host(PAIR), NGINX)
    secret = private_key().splitlines()[1].decode()
    assert secret not in repr(found) and secret not in repr(proposed([found]))


# --- certbot ----------------------------------------------------------------------------------------------------------

LIVE, ARCHIVE = "/etc/letsencrypt/live/www", "/etc/letsencrypt/archive/www"
RENEWAL = f"""\
# renew_before_expiry = 30 days
version = 2.1.0
archive_dir = {ARCHIVE}
cert = {LIVE}/cert.pem
privkey = {LIVE}/privkey.pem
chain = {LIVE}/chain.pem
fullchain = {LIVE}/fullchain.pem

# Options used in the renewal process
[renewalparams]
account = 0123456789abcdef
authenticator = nginx
renew_hook = systemctl reload mine
"""


def certbots(renewal: str = RENEWAL) -> Sources:
    kinds = {"cert": certificate(*WWW), "chain": certificate("ca.example", ca=True), "privkey": private_key()}
    kinds["fullchain"] = kinds["cert"] + kinds["chain"]
    links = {f"{LIVE}/{kind}.pem": f"{ARCHIVE}/{kind}3.pem" for kind in kinds}
    files: dict[str, str | bytes] = {f"{ARCHIVE}/{kind}3.pem": data for kind, data in kinds.items()}
    return host({**files, "/etc/letsencrypt/renewal/www.conf": renewal}, links)


def test_all_four_files_of_a_lineage_are_taken_over_at_their_real_places() -> None:
    sources = certbots()
    (lineage,) = read_certbot(sources, "/etc/letsencrypt")
    assert (lineage.name, lineage.renews, lineage.hooks) == ("www", True, ("systemctl reload mine",))
    nginx = use(Service.NGINX, *pair(f"{LIVE}/fullchain.pem", f"{LIVE}/privkey.pem"), names=WWW)
    (found,) = in_use(sources, nginx, lineages=(lineage,))
    assert dict(found.files) == {
        "fullchain.pem": f"{ARCHIVE}/fullchain3.pem", "private.key": f"{ARCHIVE}/privkey3.pem",
        "certificate.pem": f"{ARCHIVE}/cert3.pem", "chain.pem": f"{ARCHIVE}/chain3.pem",
    }  # fmt: skip
    assert found.lineage == lineage and not found.fault
    made = proposed([found])
    assert made.added[0]["to"] == [path for _, path in found.files]


def test_a_lineage_that_nothing_reads_is_reported() -> None:
    sources = certbots(RENEWAL.replace("account", "autorenew = False\naccount"))
    lineages = tuple(read_certbot(sources, "/etc/letsencrypt"))
    (found,) = in_use(sources, lineages=lineages)
    assert "what to reload is not known" in found.fault and f"adopt {LIVE}/fullchain.pem" in found.fix
    assert found.lineage is not None and not found.lineage.renews
    given = read_given(sources, [f"{LIVE}/fullchain.pem"])
    (found,) = in_use(sources, *given, lineages=lineages)
    assert not found.fault and len(found.files) == 4


# --- given paths --------------------------------------------------------------------------------------------------------


def test_a_directory_is_paired_by_public_keys() -> None:
    files = {
        "/d/b.key": private_key(1),
        "/d/a.crt": certificate(*WWW),
        "/d/z": private_key(0),
        "/d/b.crt": certificate("b.example", number=1) + certificate("ca.example", ca=True),
        "/d/one.pem": certificate("one.example", number=2) + private_key(2),
        "/d/ca.pem": certificate("ca.example", ca=True),
        "/d/store.p12": b"0",
        "/d/readme": b"x",
    }
    sources = host(files)
    assert [dict(one.files) for one in read_given(sources, ["/d"])] == [
        {"certificate.pem": "/d/a.crt", "private.key": "/d/z"},
        {"fullchain.pem": "/d/b.crt", "private.key": "/d/b.key"},
        {"combined-key-last.pem": "/d/one.pem"},
    ]
    assert [str(one.at) for one in sources.remarks] == ["/d/store.p12", "/d/ca.pem"]


def test_given_files() -> None:
    sources = host({**PAIR, "/alone.pem": certificate("a.example", number=3)})
    (found,) = read_given(sources, ["/tls/c.pem"])
    assert dict(found.files)["private.key"] == "/tls/c.key"
    assert read_given(sources, ["/alone.pem", "/none"]) == []
    assert [str(one.at) for one in sources.remarks] == ["/none", "/alone.pem"]


# --- items --------------------------------------------------------------------------------------------------------------


def test_the_items_of_a_recipe() -> None:
    made = proposed(in_use(host(PAIR), NGINX))
    assert list(made.items) == [
        {
            "id": "nginx www.example.com", "type": "copy", "ob_type": "cert", "ob_name": "www.example.com",
            "from": ["fullchain.pem", "private.key"], "to": ["/tls/c.pem", "/tls/c.key"], "check": ["check nginx"],
            "verify": {"type": "tls", "host": "127.0.0.1", "port": 443, "server_name": "www.example.com"},
        },
        {"id": "reload nginx", "type": "exec", "depends_on": ["nginx www.example.com"], "cmd_argv": ["reload nginx"]},
    ]  # fmt: skip
    assert made.commands["reload nginx"]["argv"] == list(RELOADS[Service.NGINX])


def test_a_second_service_gets_an_item_for_its_check_and_probe() -> None:
    mail = use(Service.DOVECOT, *pair("/tls/c.pem", "/tls/c.key"), port=993)
    made = proposed(in_use(host(PAIR), NGINX, mail))
    first, second, *reloads = made.items
    assert second["to"] == ["/etc/cert-ctrl/certs/www.example.com.dovecot.json"] and second["from"] == ["meta.json"]
    assert (second["check"], second["verify"]["port"]) == (["check dovecot"], 993)
    assert [one["depends_on"] for one in reloads] == [[first["id"]], [second["id"]]]


def test_two_pairs_of_one_name_share_no_path() -> None:
    copy = ("/copy/c.pem", "/copy/c.key")
    files = {**PAIR, **dict(zip(copy, PAIR.values(), strict=True))}
    services = (Service.NGINX, Service.DOVECOT)
    uses = [use(service, *pair(*paths)) for paths in (tuple(PAIR), copy) for service in services]
    made = proposed(in_use(host(files), *uses))
    paths = [path for item in made.items for path in item.get("to", ())]
    assert len(paths) == len(set(paths)) == 6
    assert {one["id"]: len(one["depends_on"]) for one in made.items if one["type"] == "exec"} == {
        "reload nginx": 2, "reload dovecot": 2,
    }  # fmt: skip


def test_applied_twice_nothing_is_added() -> None:
    found = in_use(host(PAIR), NGINX)
    made = proposed(found)
    taken = dict.fromkeys(PAIR, "nginx www.example.com")
    again = proposed(found, items=made.items, commands={"reload nginx": ()}, taken=taken)
    assert (again.added, again.commands, again.items) == ((), {}, made.items)
    assert again.takeovers[0].is_done


def test_a_certificate_that_the_agent_delivers_already() -> None:
    files = {
        "/etc/cert-ctrl/certs/.generations/w/1/fullchain.pem": certificate(*WWW),
        "/etc/cert-ctrl/certs/k": private_key(),
    }
    found = in_use(host(files), use(Service.NGINX, *pair(*files)))
    assert proposed(found).takeovers[0].is_done


def test_half_of_the_files_is_taken() -> None:
    (left,) = proposed(in_use(host(PAIR), NGINX), taken={"/tls/c.key": "mine"}).left
    assert left.fault == "item mine writes /tls/c.key already, but not all of its files"


def test_what_is_there_is_kept() -> None:
    mine = ({"id": "nginx www.example.com", "type": "exec", "cmd_argv": ["x"]},
            {"id": "r", "type": "exec", "depends_on": ["nginx www.example.com"], "cmd_argv": ["reload nginx"], "tags": ["t"]})  # fmt: skip
    made = proposed(in_use(host(PAIR), NGINX), items=mine, commands={"reload nginx": ("/own",)})
    assert made.items[0] == mine[0]
    assert made.items[1] == {**mine[1], "depends_on": ["nginx www.example.com", "nginx www.example.com 2"]}
    assert made.items[2]["id"] == "nginx www.example.com 2" and len(made.items) == 3
    assert list(made.commands) == ["check nginx"]
    assert mine[1]["depends_on"] == ["nginx www.example.com"]  # the original is unchanged


@pytest.mark.parametrize("row", [{"enabled": False, "depends_on": ["x"]}, {"depends_on": []}, {}])
def test_a_reload_that_is_not_for_some_items_is_left_alone(row: dict[str, Any]) -> None:
    mine = {"id": "reload nginx", "type": "exec", "cmd_argv": ["reload nginx"], **row}
    made = proposed(in_use(host(PAIR), NGINX), items=(mine,), commands={"reload nginx": ()})
    assert made.items[0] == mine and made.items[2]["id"] == "reload nginx 2"


def test_modes_that_differ_are_kept_within_the_rules() -> None:
    modes = {"/tls/c.pem": 0o640, "/tls/c.key": 0o644}
    made = proposed(in_use(host(PAIR), NGINX), target=lambda path: Target(mode=modes[path]))
    assert made.items[0]["mode"] == ["0640", "0640"]
    assert "gets 0640" in made.takeovers[0].notes[0]


def test_a_file_that_can_only_be_written_over() -> None:
    made = proposed(in_use(host(PAIR), NGINX), target=lambda _: Target(mode=0o600, in_place=True))
    assert made.items[0]["write"] == "in_place"


def test_a_file_that_the_agent_may_not_write() -> None:
    (left,) = proposed(in_use(host(PAIR), NGINX), target=lambda path: Target(fault=f"no: {path}", fix="x")).left
    assert (left.fault, left.fix) == ("no: /tls/c.pem", "x")


def test_without_helpers_endpoint_or_service_notes_say_so() -> None:
    quiet = attrs.evolve(NGINX, endpoint=None)
    (one,) = proposed(in_use(host(PAIR), quiet), checks={}).takeovers
    assert [note.partition(":")[0] for note in one.notes] == ["no check before a change", "no probe after a change"]
    made = proposed(in_use(host(PAIR), use(None, *NGINX.files)))
    assert [item["type"] for item in made.items] == ["copy"] and made.items[0]["id"] == "files www.example.com"


@pytest.mark.parametrize(
    ("files", "check"), [(("combined.pem", "/o"), "check haproxy"), (("fullchain.pem", "/tls/c.pem"), "check pair")]
)
def test_haproxys_check_needs_its_file(files: tuple[str, str], check: str) -> None:
    sources = host({**PAIR, "/o": private_key() + certificate(*WWW)})
    key = (("private.key", "/tls/c.key"),) if files[0] == "fullchain.pem" else ()
    made = proposed(in_use(sources, use(Service.HAPROXY, files, *key)))
    assert made.items[0]["check"] == [check]


# --- the certificate that takes its place ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "chosen", "missing"),
    [
        ([], None, ()),
        ([("other.example",)], None, ()),
        ([("www.example.com", "example.com")], 1, ()),
        ([("*.example.com", "example.com")], 1, ()),
        ([("www.example.com",)], None, ()),
        ([("*.example.com", "example.com"), ("www.example.com", "example.com")], 2, ()),
        ([("example.com", "www.example.com", "more.example.com"), ("example.com", "www.example.com")], 2, ()),
    ],
)
def test_the_certificate_that_covers_the_names(
    known: list[tuple[str, ...]], chosen: int | None, missing: tuple[str, ...]
) -> None:
    rows = tuple(Known(cert_id=number, domains=names) for number, names in enumerate(known, start=1))
    (one,) = proposed(in_use(host(PAIR), NGINX), known=rows).takeovers
    assert ((one.known.cert_id if one.known else None), one.missing) == (chosen, missing)


def test_names_that_no_server_uses_may_be_lost_but_are_reported() -> None:
    only = attrs.evolve(NGINX, names=("www.example.com",))
    (one,) = proposed(in_use(host(PAIR), only), known=(Known(cert_id=1, domains=("www.example.com",)),)).takeovers
    assert one.known is not None and one.missing == ("example.com",)


def test_an_id_only_if_the_name_is_not_unique() -> None:
    twice = (Known(cert_id=4, domains=WWW, key="RSA 2048"), Known(cert_id=5, domains=WWW, key="ECDSA secp256r1"))
    (item, _) = proposed(in_use(host(PAIR), NGINX), known=twice).items
    assert item["ob_id"] == 5 and "ob_name" not in item
    (item, _) = proposed(in_use(host(PAIR), NGINX), known=twice[1:]).items
    assert item["ob_name"] == "www.example.com" and "ob_id" not in item


def test_two_kinds_of_keys_need_two_certificates() -> None:
    files = {**PAIR, "/r.pem": certificate(*WWW, number=1, kind="rsa"), "/r.key": private_key(1, "rsa")}
    rsa = use(Service.NGINX, *pair("/r.pem", "/r.key"), names=WWW)
    found = in_use(host(files), NGINX, rsa)
    one, two = (Known(cert_id=4, domains=WWW, key="RSA 4096"), Known(cert_id=5, domains=WWW, key="ECDSA secp256r1"))
    both = proposed(found, known=(one, two))
    assert [taken.known.cert_id for taken in both.takeovers if taken.known] == [5, 4]
    half = proposed(found, known=(two,))
    assert len(half.takeovers) == 1 and "second certificate" in half.left[0].fault
