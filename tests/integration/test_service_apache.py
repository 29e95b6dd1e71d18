"""The Apache recipe. Its check is vital: a graceful restart with a bad pair ends the server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Fleet, Plane, wait_for
from proofs import (
    broken_pairs,
    check_as_nobody,
    check_by_hand,
    edited,
    frozen,
    prove_nothing_is_dropped,
    prove_rollback,
    prove_the_check_refuses,
)
from recipes import Recipe, Trial, on_trial, open_place
from revocations import FROM_MEMORY, prove_placeholder, prove_removal

from certctrl.model.records import RetryKind
from certctrl.sandbox.servers import free_port

pytestmark = pytest.mark.integration

MODULES = "/usr/lib/apache2/modules"
MAIN = """\
ServerRoot {place}
ServerName localhost
PidFile {place}/apache.pid
ErrorLog {place}/error.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule ssl_module {modules}/mod_ssl.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule dir_module {modules}/mod_dir.so
User nobody
Group nogroup
Mutex file:{place} default
Listen 127.0.0.1:{port}
KeepAlive On
MaxKeepAliveRequests 0
DirectoryIndex index.html
Include {place}/site.conf
"""


@pytest.fixture(scope="module")
def trial(shared_fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> Iterator[Trial]:
    program = need("apache2")
    with open_place() as place:
        recipe = Recipe(name="apache", place=place)
        recipe.places |= {"*:443": f"127.0.0.1:{recipe.port}", "/var/www/html": str(place / "html")}
        main = place / "apache.conf"
        recipe.commands["reload apache"] = [program, "-f", str(main), "-k", "graceful"]
        (place / "html").mkdir()
        (place / "html" / "index.html").write_text("served\n")
        main.write_text(MAIN.format(place=place, port=recipe.port, modules=MODULES))

        def start(trial: Trial) -> list[str]:
            recipe.write("site.conf", place / "site.conf")
            return [program, "-f", str(main), "-D", "FOREGROUND"]

        with on_trial(shared_fleet, plane, recipe, start) as trial:
            yield trial


@pytest.mark.parametrize("renewals", [4, pytest.param(50, marks=pytest.mark.campaign)])
def test_renewals_drop_no_connection(trial: Trial, renewals: int) -> None:
    prove_nothing_is_dropped(trial, renewals)


def test_a_broken_pair_changes_nothing(trial: Trial) -> None:
    prove_the_check_refuses(trial, broken_pairs(trial)["another certificate's key"])


@pytest.mark.root
def test_the_check_needs_no_rights(trial: Trial) -> None:
    done = check_as_nobody(trial)
    assert done.returncode == 0, done.stderr


def test_the_check_may_include_configtest(trial: Trial, tmp_path: Path) -> None:
    options = [*trial.recipe.commands["reload apache"][:-2], "-t"]
    assert check_by_hand(trial, {}, tmp_path / "good", *options).returncode == 0
    with edited(trial.recipe.place / "site.conf", lambda text: text + "<VirtualHost"):
        done = check_by_hand(trial, {}, tmp_path / "broken", *options)
    assert done.returncode != 0
    assert "site.conf" in done.stderr


def test_a_reload_that_fails_is_rolled_back(trial: Trial) -> None:
    broken = edited(trial.recipe.place / "apache.conf", lambda text: text + "<VirtualHost")
    prove_rollback(trial, broken, "item reload apache", RetryKind.DOWN)


def test_a_parent_that_hangs_is_rolled_back(trial: Trial) -> None:
    prove_rollback(trial, frozen(trial.service.pid), "serves another certificate")


def test_a_service_that_reads_other_files_is_rolled_back(trial: Trial) -> None:
    place, certs = trial.recipe.place, trial.agent.layout.certs
    for end in ("crt", "key"):
        (place / f"www.example.com.{end}").write_bytes((certs / f"www.example.com.{end}").read_bytes())
    elsewhere = edited(place / "site.conf", lambda text: text.replace(str(certs), str(place)))
    prove_rollback(trial, elsewhere, "serves another certificate")


def test_without_the_check_a_bad_pair_ends_the_server(trial: Trial, tmp_path: Path) -> None:
    # why check-pair is needed: `apachectl configtest` accepts this pair
    place, certs, port = trial.recipe.place, trial.agent.layout.certs, free_port()
    main, site, other = tmp_path / "apache.conf", tmp_path / "site.conf", tmp_path / "other.key"
    other.write_bytes(broken_pairs(trial)["another certificate's key"]["private.key"])
    main.write_text(MAIN.format(place=tmp_path, port=port, modules=MODULES))
    site.write_text((place / "site.conf").read_text().replace(f":{trial.recipe.port}", f":{port}"))
    program = [trial.recipe.commands["reload apache"][0], "-f", str(main)]
    with subprocess.Popen([*program, "-D", "FOREGROUND"]) as server:
        try:
            wait_for((tmp_path / "apache.pid").exists, "a second Apache")
            with edited(site, lambda text: text.replace(f"{certs}/www.example.com.key", str(other))):
                assert subprocess.run([*program, "-t"], capture_output=True, timeout=60, check=False).returncode == 0
                subprocess.run([*program, "-k", "graceful"], capture_output=True, timeout=60, check=True)
                wait_for(lambda: server.poll() is not None, "it to give up")
        finally:
            server.terminate()


def test_a_placeholder_replaces_a_revoked_certificate(trial: Trial) -> None:
    prove_placeholder(trial)


@pytest.mark.campaign
def test_a_removed_certificate_is_served_until_apache_ends(trial: Trial) -> None:
    prove_removal(trial, FROM_MEMORY, "item reload apache", "does not exist or is empty")
