"""`cert-ctrl plane import`, `renew` of many, `certificates --expiring` and `issue --from-file`, against a real plane."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, pkcs12
from made_chains import DAY, Made, made
from nacl.public import PrivateKey
from plane_commands import PlaneSite
from proving import registration

from certctrl.cli.plane import from_file
from certctrl.cli.plane.listing import ending, span, validity
from certctrl.errors import ExitStatus, TransportError, UsageError

pytestmark = pytest.mark.integration

NOW = time.time()


def chain() -> tuple[Made, Made]:
    """Return a root and an intermediate that are valid now."""
    root = made("House root", ca=True, start=NOW - DAY, end=NOW + 3650 * DAY)
    return root, made("House issuing", root, ca=True, start=NOW - DAY, end=NOW + 1000 * DAY)


HOUSE, ISSUING = chain()


def secret(path: Path, data: str | bytes) -> None:
    """Write a file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def leaf(name: str, **options: float) -> Made:
    return made(name, ISSUING, names=[name], **{"start": NOW - DAY, "end": NOW + 90 * DAY, **options})


def certificates(site: PlaneSite) -> dict[str, dict[str, object]]:
    return {row["domain_name"]: row for row in site("certificates", "--json").json if row["status"] != "revoked"}


# --- tags ---------------------------------------------------------------------------------------------------------


def test_devices_and_certificates_by_tag(site: PlaneSite, device: str) -> None:
    token = site("enrolment-token", "--uses", "0", "--tag", "lab", "--tag", "env=test").output.strip()
    site.register(registration("id-of-a-tagged-device", PrivateKey.generate(), "tagged") | {"enrolment_token": token})
    assert site("issue", "tag-a.example", "--device", "tagged").status == 0
    assert site("issue", "tag-b.example", "--device", device).status == 0
    done = site("tag", device, "tagged", "--add", "shop", "--add", "env=prod", "--remove", "lba")
    lines = done.output.splitlines()
    assert [line.partition(": ")[2] for line in lines] == ["env=prod, shop", "env=prod, lab, shop"]
    assert done.err.count(" has no tag lba") == 2

    assert [row["name"] for row in site("devices", "--tag", "shop", "--tag", "lab", "--json").json] == ["tagged"]
    head, line = site("devices", "--tag", "lab").output.splitlines()
    assert head.endswith("TAGS") and line.endswith("env=prod, lab, shop")
    nothing = site("devices", "--tag", "lbb")
    assert (nothing.status, nothing.err) == (
        0, "note: no device has the tag 'lbb'; did you mean lab? tags in use: env=prod, lab, shop\n",
    )  # fmt: skip
    assert [row["domain_name"] for row in site("certificates", "--tag", "lab", "--json").json] == ["tag-a.example"]
    assert "tag-a.example" in site("certificates", "--tag", "lab", "--expiring", "52w").output

    before = certificates(site)
    assert site("renew", "--tag", "lab").output == "renewed 1 certificate\n"
    after = certificates(site)
    renewed = {name for name, row in after.items() if row["serial_number"] != before[name]["serial_number"]}
    assert renewed == {"tag-a.example"}
    for options in (("--due",), ("--issuer", "import"), ("--tag", "env=prod", "--issuer", "import")):
        assert site("renew", "--tag", "lab", *options).output == "no certificate to renew\n"
    assert site("tag", device, "tagged", "--remove", "shop", "--json").json[0]["removed"] == ["shop"]


@pytest.mark.parametrize(
    ("argv", "what", "fix"),
    [
        (["renew", "--tag", "none-has-it"], "no device has the tag 'none-has-it'", "fix: "),
        (["renew", "--tag", ""], "no device has the tag ''", "fix: "),
        (["renew", "a.example", "--tag", "x"], "name certificates, or use --all", "fix: "),
        (["devices", "--tag", ""], "'' is not a tag", ""),
        (["devices", "--tag", "a,b", "--outcomes", "x"], "--outcomes shows one device", "fix: leave one"),
        (["certificates", "--tag", "Web"], "'Web' is not a tag", "such as web or env=prod"),
        (["enrolment-token", "--tag", "a b"], "'a b' is not a tag", ""),
        (["tag", "1"], "no tag given", "fix: add --add TAG or --remove TAG"),
        (["tag", "nobody", "--add", "web"], "has no device 'nobody'", "fix: cert-ctrl plane devices"),
        (["tag", "1", "--add", "web", "--remove", "web"], "web cannot be both added and removed", ""),
    ],
)
def test_mistakes_with_tags(site: PlaneSite, argv: list[str], what: str, fix: str) -> None:
    result = site(*argv)
    assert result.status == ExitStatus.USAGE
    assert what in result.err and fix in result.err


# --- import -----------------------------------------------------------------------------------------------------------


def test_imports_and_their_renewal(site: PlaneSite, device: str, tmp_path: Path) -> None:
    cert, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    one = leaf("import.example")
    cert.write_text(one.pem)
    secret(key, one.key_pem)
    ca.write_text(HOUSE.pem + ISSUING.pem)
    argv = ("import", "--cert", str(cert), "--key", str(key))
    refused = site(*argv)
    assert refused.status == ExitStatus.USAGE
    assert "chain lacks the certificate of CN=House issuing" in refused.err
    result = site(*argv, "--chain", str(ca), "--device", device)
    assert result.output.startswith("imported certificate ")
    row = certificates(site)["import.example"]

    newer = leaf("import.example", start=NOW - 60)
    data = pkcs12.serialize_key_and_certificates(
        b"www", newer.key, newer.certificate, [ISSUING.certificate], BestAvailableEncryption(b"hunter-two")
    )
    secret(tmp_path / "www.p12", data)
    secret(tmp_path / "password", "hunter-two\n")
    wrong = site("import", "--pkcs12", str(tmp_path / "www.p12"))
    assert wrong.status == ExitStatus.USAGE
    assert "the password is wrong" in wrong.err
    again = site("import", "--pkcs12", str(tmp_path / "www.p12"), "--password-file", str(tmp_path / "password"))
    assert f"imported certificate {row['id']} " in again.output
    assert "the root CN=House root is not known here" in again.err
    assert certificates(site)["import.example"]["device_ids"] == row["device_ids"]

    renewal = site("renew", "import.example")
    assert renewal.status == ExitStatus.FAILED
    assert "was imported: get a new one from its CA and import it" in renewal.err


def test_an_encrypted_key_and_a_certificate_to_renew(site: PlaneSite, tmp_path: Path) -> None:
    issued = site("issue", "replaced.example", "--json").json
    one = leaf("replaced.example", start=NOW + 1)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(one.pem + ISSUING.pem)
    form = PrivateFormat.PKCS8
    secret(key, one.key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"hunter-two")))
    secret(tmp_path / "password", "hunter-two")
    argv = ("import", "--cert", str(cert), "--key", str(key), "--password-file", str(tmp_path / "password"))
    row = site(*argv, "--renews", "replaced.example", "--json").json
    assert (row["id"], row["issuer"]) == (issued["id"], "import")


def test_secrets_of_an_import_must_not_be_readable_by_others(site: PlaneSite, tmp_path: Path) -> None:
    one = leaf("readable.example")
    cert, key, password, store = (tmp_path / name for name in ("cert.pem", "key.pem", "password", "www.p12"))
    encryption = BestAvailableEncryption(b"hunter-two")
    cert.write_text(one.pem + ISSUING.pem)
    secret(key, one.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    secret(store, pkcs12.serialize_key_and_certificates(b"www", one.key, one.certificate, None, encryption))
    secret(password, "hunter-two\n")
    by_key = ("import", "--cert", str(cert), "--key", str(key), "--password-file", str(password))
    by_store = ("import", "--pkcs12", str(store), "--chain", str(cert), "--password-file", str(password))
    for argv, file, mode in ((by_key, key, 0o644), (by_key, password, 0o640), (by_store, store, 0o604)):
        file.chmod(mode)
        refused = site(*argv)
        assert refused.status == ExitStatus.USAGE
        assert f"{file} is readable by other users" in refused.err and f"chmod 0600 {file}" in refused.err
        assert "readable.example" not in certificates(site)
        file.chmod(0o600)
    assert site(*by_key).status == 0, "the certificate itself may be public"


@pytest.mark.parametrize("argv", [(), ("--cert", "x"), ("--pkcs12", "x", "--key", "y"), ("--pkcs12", "/absent")])
def test_imports_that_are_not_understood(site: PlaneSite, argv: tuple[str, ...]) -> None:
    assert site("import", *argv).status == ExitStatus.USAGE


# --- renew ------------------------------------------------------------------------------------------------------------


def test_many_are_renewed_with_one_command(site: PlaneSite) -> None:
    names = [f"many-{number}.example" for number in range(3)]
    before = {name: site("issue", name, "--json").json for name in names}
    result = site("renew", *names)
    assert "renewed 3 certificates" in result.output
    after = certificates(site)
    assert all(after[name]["serial_number"] != before[name]["serial_number"] for name in names)
    assert site("renew", "--due").output == "no certificate to renew\n"
    assert site("renew", "--issuer", "absent").output == "no certificate to renew\n"
    done = site("renew", "--all", "--issuer", "builtin", "--json").json
    assert {row["state"] for row in done} == {"done"}
    assert len(done) == len([row for row in after.values() if row["issuer"] == "builtin"])
    assert site("renew").status == ExitStatus.USAGE
    assert site("renew", "many-1.example", "--all").status == ExitStatus.USAGE
    ordered = site("renew", *names, "--no-wait").output
    assert ordered == "ordered 3 renewals; follow with: cert-ctrl plane orders list\n"


def test_the_number_is_asked_for_on_a_terminal(site: PlaneSite, monkeypatch: pytest.MonkeyPatch) -> None:
    row = site("issue", "asked.example", "--json").json
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("certctrl.cli.plane.connection.answered_yes", lambda text: asked.append(text) or False)
    assert site("renew", "--all").status == ExitStatus.FAILED
    assert asked[0].startswith("Renew ")
    assert certificates(site)["asked.example"]["serial_number"] == row["serial_number"]


# --- the calendar -----------------------------------------------------------------------------------------------------


def test_the_calendar(site: PlaneSite) -> None:
    site("issue", "soon.example", "--validity-seconds", "86400")
    site("issue", "late.example", "--validity-seconds", "8640000")
    shown = site("certificates", "--expiring", "2d").output
    assert "soon.example" in shown
    assert "late.example" not in shown
    rows = site("certificates", "--expiring", "2d", "--json").json
    assert [row["domain_name"] for row in rows] == ["soon.example"]
    assert site("certificates", "--expiring", "1h").output == "no certificate expires within 1h\n"
    assert site("certificates", "--expiring", "soon").status == ExitStatus.USAGE


def test_spans() -> None:
    assert (span("12h"), span("30d"), span("4w")) == (43_200, 2_592_000, 2_419_200)
    for wrong in ("", "0d", "30", "d", "-1d", "1.5d", "99999w", "１d"):
        with pytest.raises(UsageError):
            span(wrong)


def test_the_validity_of_a_token_is_a_span_or_seconds() -> None:
    assert (validity("90"), validity("12h"), validity("4w")) == (90, 43_200, 2_419_200)
    for wrong in ("", "0", "-1", "1.5", "1y", "１２"):
        with pytest.raises(UsageError):
            validity(wrong)


def test_the_calendar_is_sorted_and_has_what_has_expired() -> None:
    rows = [
        {"id": number, "status": status, "not_after": end}
        for number, (status, end) in enumerate(
            [
                ("active", "2026-01-03T00:00:00Z"), ("expired", "2026-01-01T00:00:00Z"),
                ("revoked", "2026-01-02T00:00:00Z"), ("pending", None), ("active", "2026-03-01T00:00:00Z"),
            ]
        )
    ]  # fmt: skip
    assert [row["id"] for row in ending(rows, 1_767_312_000.0, 30 * DAY)] == [1, 0]


# --- issue --from-file ------------------------------------------------------------------------------------------------


def test_a_file_is_issued_once(site: PlaneSite, device: str, tmp_path: Path) -> None:
    file = tmp_path / "certificates.csv"
    file.write_text(
        f"domains,devices,key_type\nfile-1.example www.file-1.example,{device},\nfile-2.example,,ecdsa-p384\n"
    )
    result = site("issue", "--from-file", str(file))
    assert result.output == f"{file}: 2 issued\n"
    rows = certificates(site)
    assert rows["file-1.example"]["sans"] == ["file-1.example", "www.file-1.example"]
    assert rows["file-2.example"]["key_type"] == "ecdsa-p384"
    assert site("issue", "--from-file", str(file)).output == f"{file}: 2 there already\n"
    file.write_text(
        f"domains,devices,key_type\nwww.FILE-1.example file-1.example,,\nfile-2.example,{device},ecdsa-p384\n"
    )
    assert site("issue", "--from-file", str(file)).output == f"{file}: 1 assigned to further devices, 1 there already\n"
    assert len([row for row in site("certificates", "--json").json if "file-" in row["domain_name"]]) == 2
    done = site("issue", "--from-file", str(file), "--json").json
    assert [(row["line"], row["result"]) for row in done] == [(2, "known"), (3, "known")]


def test_nothing_is_issued_if_one_line_is_wrong(site: PlaneSite, tmp_path: Path) -> None:
    file = tmp_path / "certificates.json"
    wanted = [
        {"domains": ["good.example"]}, {"domains": ["bad_name.example"]}, {"domains": ["a.example"], "devices": ["no"]},
        {"domains": ["b.example"], "key_type": "rsa-512"}, {"domains": ["c.example"], "issuer": "absent"},
        {"domains": ["localhost"]},
    ]  # fmt: skip
    file.write_text("[\n" + ",\n".join(map(json.dumps, wanted)) + "\n]\n")
    result = site("issue", "--from-file", str(file))
    assert result.status == ExitStatus.USAGE
    for line in (
        "line 3, domains: 'bad_name.example' is not a DNS name", "line 4, devices: there is no device 'no'",
        "line 5, key_type: key_type must be one of", "line 6, issuer: There is no issuer 'absent'", "line 7",
        "nothing was issued",
    ):  # fmt: skip
        assert line in result.err, line
    assert "good.example" not in certificates(site)
    file.write_text("[5]")
    assert "line 1: expected an object" in site("issue", "--from-file", str(file)).err
    assert site("issue", "--from-file", str(file), "x.example").status == ExitStatus.USAGE
    assert site("issue").status == ExitStatus.USAGE


def test_a_broken_command_is_repeated(site: PlaneSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of some requests are lost: the certificates are there all the same."""
    file = tmp_path / "certificates.csv"
    names = [f"broken-{number}.example" for number in range(6)]
    file.write_text("domains\n" + "\n".join(names) + "\n")
    real, count = from_file._issue, 0

    async def failing(api: object, one: from_file.Checked) -> dict[str, object]:
        nonlocal count
        done = await real(api, one)  # type: ignore[arg-type]
        count += 1
        if count == 3:
            raise TransportError("the connection broke")
        return done

    monkeypatch.setattr(from_file, "_issue", failing)
    monkeypatch.setattr(from_file, "MAX_CONCURRENT", 1)
    result = site("issue", "--from-file", str(file))
    assert result.status == ExitStatus.UNAVAILABLE
    assert "2 of 6 certificates are done; repeat the command to continue" in result.err
    monkeypatch.setattr(from_file, "_issue", real)
    assert site("issue", "--from-file", str(file)).output == f"{file}: 3 issued, 3 there already\n"
    assert sum(row["domain_name"] in names for row in site("certificates", "--json").json) == 6
