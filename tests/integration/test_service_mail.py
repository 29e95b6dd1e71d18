"""The mail recipes: Postfix (SMTP with STARTTLS) and Dovecot (IMAP with STARTTLS), whose sessions survive reloads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Fleet, Plane
from proofs import (
    broken_pairs,
    check_by_hand,
    edited,
    moved_away,
    prove_nothing_is_dropped,
    prove_rollback,
    prove_the_check_refuses,
)
from recipes import Recipe, Trial, on_trial, open_place
from revocations import FROM_MEMORY, prove_placeholder, prove_removal

from certctrl.model.records import RetryKind

pytestmark = [pytest.mark.integration, pytest.mark.root]  # both servers need their own users

RENEWALS = pytest.mark.parametrize("renewals", [4, pytest.param(50, marks=pytest.mark.campaign)])
MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {place}/spool
data_directory = {place}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mail.example.com
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
alias_maps =
alias_database =
notify_classes =
smtpd_junk_command_limit = 100000
maillog_file = {place}/maillog
maillog_file_prefixes = {place}
default_process_limit = 20
"""
MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
error unix - - n - - error
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""
DOVECOT = """\
base_dir = {place}/run
state_dir = {place}/state
log_path = {place}/dovecot.log
protocols = imap
listen = 127.0.0.1
mail_location = maildir:{place}/mail/%u
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid=65534 gid=65534 home={place}/mail/%u
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
!include tls.conf
"""


@pytest.fixture(scope="module")
def postfix(shared_fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> Iterator[Trial]:
    program = need("postfix")
    with open_place() as place:
        recipe = Recipe(name="postfix", place=place, kind="smtp", domain="mail.example.com")
        recipe.places |= {"/etc/postfix/tls": str(place / "tls")}
        recipe.commands["reload postfix"] = [program, "-c", str(place / "etc"), "reload"]
        recipe.stop = [program, "-c", str(place / "etc"), "stop"]  # its master outlives the process that starts it
        for directory in ("etc", "spool", "data", "tls"):
            (place / directory).mkdir()
        shutil.chown(place / "data", "postfix")

        def start(trial: Trial) -> list[str]:
            main = MAIN_CF.format(place=place) + recipe.text("tls.cf")
            (place / "etc" / "main.cf").write_text(main)
            (place / "etc" / "master.cf").write_text(MASTER_CF.format(port=recipe.port))
            return [program, "-c", str(place / "etc"), "start-fg"]

        with on_trial(shared_fleet, plane, recipe, start) as trial:
            yield trial


@pytest.fixture(scope="module")
def dovecot(shared_fleet: Fleet, plane: Plane, need: Callable[[str], str]) -> Iterator[Trial]:
    program, doveadm = need("dovecot"), need("doveadm")
    with open_place() as place:
        recipe = Recipe(name="dovecot", place=place, kind="imap", domain="mail.example.com", local=True)
        settings = place / "dovecot.conf"
        recipe.commands["reload dovecot"] = [doveadm, "-c", str(settings), "reload"]
        (place / "mail").mkdir()
        (place / "mail").chmod(0o777)

        def start(trial: Trial) -> list[str]:
            settings.write_text(DOVECOT.format(place=place, port=recipe.port))
            recipe.write("tls.conf", place / "tls.conf")
            return [program, "-F", "-c", str(settings)]

        with on_trial(shared_fleet, plane, recipe, start) as trial:
            yield trial


@RENEWALS
def test_renewals_end_no_postfix_session(postfix: Trial, renewals: int) -> None:
    prove_nothing_is_dropped(postfix, renewals)


def test_a_broken_pair_does_not_reach_postfix(postfix: Trial) -> None:
    why = prove_the_check_refuses(postfix, broken_pairs(postfix)["a key cut off"])
    assert "private.key: no key can be read" in why


def test_the_check_may_include_postfix_check(postfix: Trial, tmp_path: Path) -> None:
    options = [*postfix.recipe.commands["reload postfix"][:-1], "check"]
    assert check_by_hand(postfix, {}, tmp_path / "good", *options).returncode == 0
    with edited(
        postfix.recipe.place / "etc" / "main.cf", lambda text: text.replace("mail_owner = postfix", "mail_owner = 1")
    ):
        done = check_by_hand(postfix, {}, tmp_path / "broken", *options)
    assert done.returncode != 0


def test_a_failed_reload_of_postfix_is_rolled_back(postfix: Trial) -> None:
    # without its pid file Postfix counts as stopped
    lock = moved_away(postfix.recipe.place / "spool" / "pid" / "master.pid")
    prove_rollback(postfix, lock, "item reload postfix", RetryKind.DOWN)


def test_a_postfix_that_reads_another_file_is_rolled_back(postfix: Trial) -> None:
    place = postfix.recipe.place
    shutil.copy(place / "tls" / "mail.example.com.pem", place / "old.pem")
    elsewhere = edited(
        place / "etc" / "main.cf", lambda text: text.replace(f"{place}/tls/mail.example.com.pem", f"{place}/old.pem")
    )
    prove_rollback(postfix, elsewhere, "serves another certificate")


@RENEWALS
def test_renewals_end_no_dovecot_session(dovecot: Trial, renewals: int) -> None:
    # Dovecot 2.3 disconnects logins in progress at a reload; the second attempt succeeds
    prove_nothing_is_dropped(dovecot, renewals)


def test_a_broken_pair_does_not_reach_dovecot(dovecot: Trial) -> None:
    why = prove_the_check_refuses(dovecot, broken_pairs(dovecot)["a certificate cut off"])
    assert "fullchain.pem: no certificate can be read" in why


def test_the_check_may_include_doveconf(dovecot: Trial, tmp_path: Path, need: Callable[[str], str]) -> None:
    options = [need("doveconf"), "-n", "-c", str(dovecot.recipe.place / "dovecot.conf")]
    assert check_by_hand(dovecot, {}, tmp_path / "good", *options).returncode == 0
    with edited(dovecot.recipe.place / "dovecot.conf", lambda text: text + "half a line"):
        done = check_by_hand(dovecot, {}, tmp_path / "broken", *options)
    assert done.returncode != 0


def test_a_failed_reload_of_dovecot_is_rolled_back(dovecot: Trial) -> None:
    broken = edited(dovecot.recipe.place / "dovecot.conf", lambda text: text + "half a line")
    prove_rollback(dovecot, broken, "item local:reload dovecot", RetryKind.DOWN)


def test_a_dovecot_that_reads_other_files_is_rolled_back(dovecot: Trial) -> None:
    place, certs = dovecot.recipe.place, dovecot.agent.layout.certs
    for end in ("crt", "key"):
        shutil.copy(certs / f"mail.example.com.{end}", place / f"mail.example.com.{end}")
    elsewhere = edited(place / "tls.conf", lambda text: text.replace(str(certs), str(place)))
    prove_rollback(dovecot, elsewhere, "serves another certificate")


def test_a_placeholder_is_offered_by_postfix(postfix: Trial) -> None:
    prove_placeholder(postfix)


def test_postfix_keeps_offering_a_starttls_that_fails(postfix: Trial) -> None:
    # why the recipe uses a placeholder: without the file Postfix still offers STARTTLS, even with `may`
    says = "for mail.example.com does not complete a TLS handshake"
    prove_removal(postfix, says, outcome="applied", served=False, starts=True)


def test_a_placeholder_is_offered_by_dovecot(dovecot: Trial) -> None:
    prove_placeholder(dovecot)


@pytest.mark.campaign
def test_a_removed_certificate_is_served_until_dovecot_ends(dovecot: Trial) -> None:
    # its reload succeeds: only the probe finds it
    with dovecot.impatient():
        prove_removal(dovecot, FROM_MEMORY)
