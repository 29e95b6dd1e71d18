"""Every list of `cert-ctrl plane` has `--json`, a filter and pages; none prints CSV and JSON at once."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from plane_commands import Cli, PlaneSite
from test_causes_commands import failure, report  # the same reports

from certctrl.cli.plane.commands import plane
from certctrl.cli.plane.connection import OperatorCommand
from certctrl.cli.plane.paging import ListCommand, chosen
from certctrl.errors import ExitStatus, UsageError
from certctrl.model.csv_rows import CAUSE_COLUMNS, CERTIFICATE_COLUMNS, DEVICE_COLUMNS

PLACES = {"--after", "--after-id", "--before", "--before-id"}
SHARED = {
    "--data",
    "--server",
    "--ca",
    "--operator-key-file",
    "--token-file",
    "--user",
    "--json",
    "--dry-run",
    "--help",
}
FORMS = {"--csv", "--all", "--sort", "--limit", "--list"}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield each command below a group, with its name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def options(command: Any) -> set[str]:
    return {name for param in command.params for name in param.opts if name.startswith("--")}


def is_list(command: Any) -> bool:
    """Whether a command says that it lists something."""
    return (
        command.name == "list"
        or re.search(r"\blist\b", (command.help or "").split("\n", 1)[0].lower()) is not None
        or "--list" in options(command)
        or isinstance(command, ListCommand)
    )


def lacks(command: Any) -> list[str]:
    """Return what a list does not have."""
    found = options(command)
    return [
        what
        for what, has in (
            ("--json", "--json" in found),
            ("--limit", "--limit" in found),
            ("a place to continue at", found & PLACES),
            ("a filter", found - SHARED - FORMS - PLACES),
        )
        if not has
    ]


ALL = dict(commands(typer.main.get_command(plane)))
LISTS = {name: command for name, command in ALL.items() if is_list(command)}
WITH_CSV = [name for name, command in ALL.items() if "--csv" in options(command)]


def test_the_lists_are_found() -> None:
    assert set(LISTS) >= {
        "alerts list", "alerts outbox", "audit", "ca list", "causes", "certificates", "devices", "enrolment-token",
        "issuers list", "issuers rule", "operator list", "orders list", "profile history", "profile list", "rollout list",
        "together", "token list",
    }  # fmt: skip
    assert set(WITH_CSV) >= {"audit", "causes", "certificates", "devices"}


@pytest.mark.parametrize("name", LISTS)
def test_every_list_has_json_a_filter_and_pages(name: str) -> None:
    assert lacks(LISTS[name]) == []


def test_a_list_without_them_is_noticed() -> None:
    bare = OperatorCommand("list", callback=lambda: None, help="List the things.")
    assert is_list(bare)
    assert lacks(bare) == ["--limit", "a place to continue at", "a filter"]
    assert not is_list(ALL["operator add"])


@pytest.mark.parametrize("name", WITH_CSV)
def test_csv_and_json_are_refused(cli: Cli, tmp_path: Path, name: str) -> None:
    result = cli("plane", *name.split(), "--csv", "--json", "--data", str(tmp_path))
    assert (result.status, result.out) == (ExitStatus.USAGE, "")
    assert "--csv and --json are given" in result.err


# --- which rows -------------------------------------------------------------------------------------------------------


def pages(capsys: pytest.CaptureFixture[str], **page: Any) -> tuple[list[str], str]:
    """Return the names that options choose of four, and the notes."""
    from certctrl.cli.plane import paging

    rows = [("web 1", "up"), ("web-2", "Down"), ("db", "down"), ("cache", "up")]
    ctx = SimpleNamespace(meta={paging._META: paging.Page(**page)})
    found = chosen(ctx, rows, lambda row: row[0], lambda row: row)
    return [row[0] for row in found], capsys.readouterr().err


def test_rows_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert pages(capsys) == (["web 1", "web-2", "db", "cache"], "")
    assert pages(capsys, match="DOWN") == (["web-2", "db"], "")
    assert pages(capsys, limit=1) == (["web 1"], "note: there are more: add --after 'web 1'\n")
    assert pages(capsys, limit=2, after="web-2") == (["db", "cache"], "")
    assert pages(capsys, match="down", limit=1, after="web 1") == (
        ["web-2"],
        "note: there are more: add --after web-2\n",
    )
    assert pages(capsys, match="up", after="cache") == ([], "")
    assert pages(capsys, match="cahe") == ([], "note: no row shows 'cahe'; did you mean cache?\n")


def test_a_place_that_is_not_in_the_list_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="the list has no 'web-3'") as raised:
        pages(capsys, after="web-3")
    assert raised.value.fix == "did you mean web-2?"


# --- against a plane --------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_lists_are_filtered_and_paged(site: PlaneSite, device: str) -> None:
    issuer = site("issuers", "list", "--json").json[0]["name"]
    for number in "123":
        assert site("operator", "add", f"lists-{number}", "--role", "viewer").status == 0
        made = site(
            "token", "create", f"lists-{number}", "--operator", f"lists-{number}", "--expires-in", "1d", "--json"
        )
        assert made.status == 0
        assert site("enrolment-token", "--label", f"lists-{number}").status == 0
        assert site("issuers", "rule", f"lists-{number}.example", issuer).status == 0
    for argv, key in (
        (("operator", "list"), "name"),
        (("token", "list"), "id"),
        (("enrolment-token", "--list"), "id"),
        (("issuers", "rule"), "domain"),
    ):
        every = site(*argv, "--match", "LISTS-", "--json").json
        assert len(every) == 3, argv
        first = site(*argv, "--match", "lists-", "--limit", "2", "--json")
        assert first.json == every[:2]
        assert first.err == f"note: there are more: add --after {every[1][key]}\n"
        rest = site(*argv, "--match", "lists-", "--after", str(every[1][key]), "--json")
        assert (rest.json, rest.err) == (every[2:], "")
        text = site(*argv, "--match", "lists-3").output
        assert "lists-3" in text and "lists-2" not in text
        assert site(*argv, "--match", "zzzz").output == "no row fits\n"
        assert site(*argv, "--after", "zzzz").status == ExitStatus.USAGE


@pytest.mark.integration
def test_other_lists_choose_rows_by_what_they_show(site: PlaneSite, tmp_path: Path) -> None:
    items = tmp_path / "items.json"
    items.write_text("[]")
    for version in ("first", "second"):
        assert (
            site("profile", "put", "lists", str(items), "--devices", f"lists-{version}", "--note", version).status == 0
        )
    for name in ("lists-a", "lists-b"):
        url = ("--kind", "webhook", "--url", "https://hooks.example/x")
        assert site("alerts", "add", name, *url).status == 0
        assert site("ca", "add", name, str(site.data / "ca.pem")).status == 0
    for argv, shown, key, values in (
        (("profile", "list"), "lists-SECOND", "name", ["lists"]),
        (("profile", "history", "lists"), "first", "version", [1]),
        (("profile", "history", "lists"), "lists-", "version", [2, 1]),
        (("alerts", "list"), "lists-", "name", ["lists-a", "lists-b"]),
        (("ca", "list"), "lists-", "name", ["lists-a", "lists-b"]),
        (("issuers", "list"), "zzzz", "name", []),
    ):
        rows = site(*argv, "--match", shown, "--json").json
        assert [row[key] for row in rows] == values, argv
        assert site(*argv, "--match", shown, "--limit", "1", "--json").json == rows[:1]
    rest = site("profile", "history", "lists", "--after", "2", "--json").json
    assert [row["version"] for row in rest] == [1]
    for name in ("lists-a", "lists-b"):
        assert site("alerts", "remove", name, "--yes").status == 0
    assert site("profile", "delete", "lists", "--yes").status == 0


@pytest.mark.integration
def test_sets_are_filtered_and_paged(site: PlaneSite) -> None:
    ids = [str(site("issue", f"lists-{name}.example", "--json").json["id"]) for name in "abcd"]
    site("together", "lists-shop", *ids[:2])
    site("together", "lists-blog", *ids[2:])
    names = [row["name"] for row in site("together", "--match", "lists-", "--json").json["sets"]]
    assert sorted(names) == ["lists-blog", "lists-shop"]
    page = site("together", "--match", "lists-", "--limit", "1")
    assert page.output.startswith(f"set {names[0]}: ") and page.output.count("\n") == 1
    assert f"add --after {names[0]}" in page.err
    rest = site("together", "--match", "lists-", "--after", names[0], "--json").json
    assert [row["name"] for row in rest["sets"]] == names[1:]
    for name in names:
        site("together", name, "--end")


@pytest.mark.integration
def test_causes_are_filtered_and_paged(site: PlaneSite) -> None:
    from nacl.public import PrivateKey
    from proving import registration

    enrolment = site("enrolment-token", "--uses", "0").output.strip()
    for name, reason in (("lists-x", "disk-full"), ("lists-y", "service-down")):
        body = registration(f"id-{name}", PrivateKey.generate(), name) | {"enrolment_token": enrolment}
        token = site.register(body)["session"]["access_token"]
        cert = site("issue", f"{name}.example", "--device", name, "--json").json["id"]
        report(site, token, failure(cert, step="write", reason=reason, detail=f"of {name}"))
    whole = site("causes", "--json").json
    every = [row["id"] for row in whole["causes"]]
    assert len(every) >= 2
    page = site("causes", "--limit", "1", "--json")
    assert page.json == whole | {"causes": whole["causes"][:1]} and f"--after {every[0]}" in page.err
    rest = site("causes", "--after", every[0], "--json").json["causes"]
    assert [row["id"] for row in rest] == every[1:]
    (found,) = site("causes", "--match", "SERVICE-DOWN", "--json").json["causes"]
    assert found["reason"] == "service-down"
    assert "service-down" in (text := site("causes", "--match", "service-down").output) and "disk-full" not in text
    assert site("causes", "--match", "zzzz").output.endswith("no cause fits\n")
    rows = list(csv.DictReader(StringIO(site("causes", "--match", "service-down", "--csv").output)))
    assert [row["id"] for row in rows] == [found["id"]]


@pytest.mark.integration
def test_csv_without_rows_has_its_header(site: PlaneSite, device: str) -> None:
    site("issue", "lists-csv.example", "--device", device)
    for argv, columns in (
        (("causes", "--match", "zzzz"), CAUSE_COLUMNS),
        (("devices", "--search", "zzzz"), DEVICE_COLUMNS),
        (("certificates", "--search", "zzzz"), CERTIFICATE_COLUMNS),
    ):
        assert site(*argv, "--csv").output == ",".join(columns) + "\n"
        if argv[0] != "causes":
            assert site(argv[0], "--csv").output.splitlines()[0] == ",".join(columns)


@pytest.mark.parametrize(
    "argv",
    [
        ("together", "shop", "--end", "--match", "x"),
        ("enrolment-token", "--limit", "3"),
        ("issuers", "rule", "a.example", "le", "--after", "x"),
    ],
    ids=" ".join,
)
def test_options_of_a_list_need_the_list(cli: Cli, tmp_path: Path, argv: tuple[str, ...]) -> None:
    result = cli("plane", *argv, "--data", str(tmp_path))
    assert result.status == ExitStatus.USAGE
    assert "--match, --limit and --after are for the list" in result.err
