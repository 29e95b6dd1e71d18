"""The HAProxy recipes: a combined PEM with a reload, and the runtime API without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from failure_table import EACH_FAILURE, Faults, Row, prove_row, replaced
from fleet import Fleet, Plane
from proofs import (
    broken_pairs,
    check_as_nobody,
    check_by_hand,
    children_of,
    edited,
    frozen,
    moved_away,
    prove_nothing_is_dropped,
    prove_rollback,
    prove_the_check_refuses,
)
from recipes import Recipe, Trial, on_trial, open_place
from revocations import FROM_MEMORY, prove_placeholder, prove_removal

from certctrl.model.records import RetryKind

pytestmark = pytest.mark.integration
RENEWALS = pytest.mark.parametrize("renewals", [4, pytest.param(50, marks=pytest.mark.campaign)])

MAIN = """\
global
    stats socket {place}/admin.sock mode 600 level admin
    maxconn 200
defaults
    timeout connect 5s
    timeout server 5s
backend app
    mode http
    http-request return status 200 content-type text/plain string "served"
"""


@contextmanager
def haproxy(fleet: Fleet, plane: Plane, program: str, name: str) -> Iterator[Trial]:
    with open_place() as place:
        recipe = Recipe(name=name, place=place)
        frontend, main = place / "frontend.cfg", place / "haproxy.cfg"
        recipe.places |= {
            "bind :443": f"bind 127.0.0.1:{recipe.port}",
            "/etc/haproxy/certs": str(place / "certs"),
            "/run/haproxy": str(place),
            "/usr/sbin/haproxy": program,
        }
        (place / "certs").mkdir()
        main.write_text(MAIN.format(place=place))
        files = ["-f", str(main), "-f", str(frontend)]
        if name == "haproxy":  # what ExecReload of Debian's unit does
            reload = f"{program} -c -q {' '.join(files)} && kill -USR2 $(cat {place}/pid)"
            recipe.commands["reload haproxy"] = ["/bin/sh", "-c", reload]

        def start(trial: Trial) -> list[str]:
            frontend.write_text(Recipe(name="haproxy", place=place, places=recipe.places).text("frontend.cfg"))
            return [program, "-W", "-p", str(place / "pid"), *files]

        with on_trial(fleet, plane, recipe, start) as trial:
            yield trial


@pytest.fixture(scope="module")
def trial(shared_fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> Iterator[Trial]:
    with haproxy(shared_fleet, plane, need("haproxy"), "haproxy") as trial:
        yield trial


@pytest.fixture(scope="module")
def runtime(shared_fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> Iterator[Trial]:
    need("socat")
    with haproxy(shared_fleet, plane, need("haproxy"), "haproxy-runtime") as trial:
        yield trial


@RENEWALS
def test_renewals_drop_no_connection(trial: Trial, renewals: int) -> None:
    prove_nothing_is_dropped(trial, renewals)


def faults(trial: Trial) -> Faults:
    place = trial.recipe.place
    deployed = place / "certs" / "www.example.com.pem"

    def elsewhere() -> AbstractContextManager[None]:
        (place / "old.pem").write_bytes(deployed.read_bytes())
        return edited(place / "frontend.cfg", lambda text: replaced(text, {str(deployed): f"{place}/old.pem"}))

    return Faults(
        refused=broken_pairs(trial)["another certificate's key"],
        why="inconsistencies between private key and certificate",
        broken=lambda: edited(place / "haproxy.cfg", lambda text: text + "half a line\n"),
        elsewhere=elsewhere,
        reload="reload haproxy",
    )


@EACH_FAILURE
def test_failure_table(trial: Trial, row: Row) -> None:
    prove_row(trial, row, faults(trial))


def test_the_check_knows_good_from_broken(trial: Trial, tmp_path: Path) -> None:
    good = check_by_hand(trial, {}, tmp_path / "good")
    assert good.returncode == 0, good.stderr
    for number, (what, files) in enumerate(broken_pairs(trial).items()):
        done = check_by_hand(trial, files, tmp_path / str(number))
        assert (done.returncode != 0, "combined.pem" in done.stderr) == (True, True), what


@pytest.mark.root
def test_the_check_needs_no_rights(trial: Trial) -> None:
    done = check_as_nobody(trial)
    assert done.returncode == 0, done.stderr


def test_the_check_may_include_the_live_configuration(trial: Trial, tmp_path: Path) -> None:
    options = ["-f", str(trial.recipe.place / "haproxy.cfg"), "-f", str(trial.recipe.place / "frontend.cfg")]
    assert check_by_hand(trial, {}, tmp_path / "good", *options).returncode == 0
    with edited(trial.recipe.place / "haproxy.cfg", lambda text: text + "half a line\n"):
        done = check_by_hand(trial, {}, tmp_path / "broken", *options)
    assert done.returncode != 0
    assert "haproxy.cfg" in done.stderr


def test_a_master_that_hangs_is_rolled_back(trial: Trial) -> None:
    prove_rollback(trial, frozen(trial.service.pid), "serves another certificate")


@RENEWALS
def test_the_runtime_api_closes_no_connection_at_all(runtime: Trial, renewals: int) -> None:
    workers = children_of(runtime.service.pid)
    seen = prove_nothing_is_dropped(runtime, renewals)
    assert seen.get("reopened", 0) == 0  # nothing was reloaded: the kept connection is the first one
    assert children_of(runtime.service.pid) == workers != []


def test_a_broken_pair_does_not_reach_the_runtime_api(runtime: Trial) -> None:
    prove_the_check_refuses(runtime, broken_pairs(runtime)["a key cut off"])


def test_a_missing_runtime_api_is_rolled_back(runtime: Trial) -> None:
    prove_rollback(runtime, moved_away(runtime.recipe.place / "admin.sock"), "item update haproxy", RetryKind.DOWN)


def test_the_helper_reports_a_file_that_haproxy_does_not_know(runtime: Trial, tmp_path: Path) -> None:
    import subprocess

    place, unknown = runtime.recipe.place, tmp_path / "unknown.pem"
    unknown.write_bytes((place / "certs" / "www.example.com.pem").read_bytes())
    helper = [place / "lib" / "haproxy-set-cert", place / "admin.sock", unknown]
    done = subprocess.run(helper, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "not referenced" in done.stderr


def test_a_placeholder_replaces_a_revoked_certificate(trial: Trial) -> None:
    prove_placeholder(trial)


@pytest.mark.campaign
def test_a_removed_certificate_is_served_until_haproxy_ends(trial: Trial) -> None:
    prove_removal(trial, FROM_MEMORY, "item reload haproxy")


def test_a_placeholder_goes_through_the_runtime_api(runtime: Trial) -> None:
    prove_placeholder(runtime)


def test_a_removed_certificate_stays_in_the_running_haproxy(runtime: Trial) -> None:
    prove_removal(runtime, FROM_MEMORY, "item update haproxy", "is gone: haproxy keeps serving the loaded certificate")
