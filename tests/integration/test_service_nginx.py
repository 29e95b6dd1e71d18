"""The nginx recipe: renewals under load, refused pairs, and rollbacks when nginx does not reload."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from failure_table import EACH_FAILURE, Faults, Row, prove_row, replaced
from fleet import Fleet, Plane
from proofs import (
    Load,
    broken_pairs,
    check_as_nobody,
    check_by_hand,
    copy_live,
    edited,
    frozen,
    prove_nothing_is_dropped,
    prove_rollback,
    run_check,
)
from recipes import Recipe, Trial, on_trial, open_place
from revocations import FROM_MEMORY, prove_placeholder, prove_removal, revoked

pytestmark = pytest.mark.integration

MAIN = """\
daemon off;
pid {place}/nginx.pid;
worker_processes 2;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {place}/tmp; proxy_temp_path {place}/tmp; fastcgi_temp_path {place}/tmp;
    uwsgi_temp_path {place}/tmp; scgi_temp_path {place}/tmp;
    include {place}/site.conf;
}}
"""

WITHOUT_LOG_OPTION = """\
#!/bin/sh
for word; do
    case $word in
        -h) {nginx} -h 2>&1 | grep -v -e ' -e ' | sed 's/.-e filename. //' >&2; exit ;;
        -e) echo 'nginx: invalid option: "e"' >&2; exit 1 ;;
    esac
done
exec {nginx} "$@"
"""
"""Behaves like nginx before 1.19.5, as in Debian 11."""


@pytest.fixture(scope="module")
def trial(shared_fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> Iterator[Trial]:
    with open_place() as place:
        recipe = Recipe(name="nginx", place=place)
        recipe.places |= {"listen 443": f"listen 127.0.0.1:{recipe.port}", "/var/www/html": str(place / "html")}
        program = [need("nginx"), "-p", str(place), "-e", str(place / "error.log"), "-c", str(place / "nginx.conf")]
        recipe.commands["reload nginx"] = [*program, "-s", "reload"]
        (place / "html").mkdir()
        (place / "html" / "index.html").write_text("served\n")
        (place / "nginx.conf").write_text(MAIN.format(place=place))

        def start(trial: Trial) -> list[str]:
            recipe.write("site.conf", place / "site.conf")
            return program

        with on_trial(shared_fleet, plane, recipe, start) as trial:
            yield trial


@pytest.mark.parametrize("renewals", [4, pytest.param(50, marks=pytest.mark.campaign)])
def test_renewals_drop_no_connection(trial: Trial, renewals: int) -> None:
    prove_nothing_is_dropped(trial, renewals)


def test_the_load_client_notices_a_stopped_server(trial: Trial) -> None:
    """Check the load client, whose "0 failed" the other tests rely on."""
    with Load(trial.target()) as load:
        trial.renew_and_serve()
        trial.stop()
        time.sleep(0.2)  # the client sends requests every few milliseconds
        trial.start()
        seen = load.stop()
    assert seen["new"] > 0 and seen["new_failed"] > 0, seen
    assert any("refused" in fault for fault in seen["faults"]), seen


def faults(trial: Trial) -> Faults:
    place, live = trial.recipe.place, trial.agent.layout.live_link(trial.recipe.domain)

    def elsewhere() -> AbstractContextManager[None]:
        for name in ("fullchain.pem", "private.key"):
            (place / name).write_bytes((live / name).read_bytes())
        certs = f"{trial.agent.layout.certs}/www.example.com"
        places = {f"{certs}.crt": f"{place}/fullchain.pem", f"{certs}.key": f"{place}/private.key"}
        return edited(place / "site.conf", lambda text: replaced(text, places))

    return Faults(
        refused=broken_pairs(trial)["another certificate's key"],
        why="key values mismatch",
        broken=lambda: edited(place / "nginx.conf", lambda text: text + "half a line"),
        elsewhere=elsewhere,
        reload="reload nginx",
    )


@EACH_FAILURE
def test_failure_table(trial: Trial, row: Row) -> None:
    prove_row(trial, row, faults(trial))


def test_the_check_knows_good_from_broken(trial: Trial, tmp_path: Path) -> None:
    assert check_by_hand(trial, {}, tmp_path / "good").returncode == 0
    for number, (what, files) in enumerate(broken_pairs(trial).items()):
        done = check_by_hand(trial, files, tmp_path / str(number))
        assert (done.returncode != 0, "emerg" in done.stderr) == (True, True), what


def test_the_check_works_with_an_older_nginx(trial: Trial, need: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "nginx").write_text(WITHOUT_LOG_OPTION.format(nginx=need("nginx")))
    (tmp_path / "nginx").chmod(0o755)
    for spoil, status in (({}, 0), (broken_pairs(trial)["another certificate's key"], 1)):
        copy_live(trial, spoil, place := tmp_path / str(status))
        done = run_check(["/usr/bin/env", f"PATH={tmp_path}:/usr/bin:/bin", *trial.recipe.check_argv(place)])
        assert (done.returncode, "key values mismatch" in done.stderr) == (status, status == 1), done.stderr


@pytest.mark.root
def test_the_check_needs_no_rights(trial: Trial) -> None:
    done = check_as_nobody(trial)
    assert done.returncode == 0, done.stderr


def test_the_check_may_include_the_live_configuration(trial: Trial, tmp_path: Path) -> None:
    options = trial.recipe.commands["reload nginx"][1:-2]
    assert check_by_hand(trial, {}, tmp_path / "good", *options).returncode == 0
    with edited(trial.recipe.place / "nginx.conf", lambda text: text + "half a line"):
        done = check_by_hand(trial, {}, tmp_path / "broken", *options)
    assert done.returncode != 0
    assert "nginx.conf" in done.stderr


def test_a_master_that_hangs_is_rolled_back(trial: Trial) -> None:
    prove_rollback(trial, frozen(trial.service.pid), "serves another certificate")


def test_a_placeholder_replaces_a_revoked_certificate(trial: Trial) -> None:
    prove_placeholder(trial)


def test_a_removed_certificate_is_served_until_nginx_ends(trial: Trial) -> None:
    prove_removal(trial, FROM_MEMORY, "item reload nginx", "cannot load certificate")


def test_a_kept_certificate_is_alerted_as_well(trial: Trial) -> None:
    with revoked(trial, "keep") as it:
        assert (it.outcome, it.why) == ("applied", "revoked, but kept in use: on_revoked is keep")
        assert trial.shown() == it.leaf
