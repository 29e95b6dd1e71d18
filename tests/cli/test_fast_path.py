"""The fast path gives the same result as the parser, and leaves all other command lines to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from certctrl.cli import main
from certctrl.cli.fast_path import recognised
from certctrl.cli.invocation import Invocation
from certctrl.model.records import Tokens
from certctrl.store.layout import ConfigDir
from certctrl.store.state.store import StateStore

from .conftest import Ran, record

FAST = (
    "-c DIR status", "status -c DIR", "-c DIR status --json", "status --json -c DIR --daemon", "-c DIR status --daemon",
    "-c DIR list-certs", "list-certs --json -c DIR", "status", "status --json", "list-certs",
)  # fmt: skip
PARSED = (
    "", "-c", "-c DIR", "-c status", "-c -c status", "-c DIR -c DIR status", "-c DIR status status",
    "-c DIR --json status", "-c DIR status --watch", "-c DIR list-certs --daemon", "--debug -c DIR status",
    "-c DIR status --help", "-cDIR status", "--config-dir DIR status", "-c DIR plan", "--keep-running -c DIR",
    "-c DIR --keep-running --debug", "-c DIR --keep-running status", "-c DIR status -- x",
)  # fmt: skip


@pytest.mark.parametrize("line", FAST)
def test_fast_path_and_parser_give_the_same_result(
    line: str,
    layout: ConfigDir,
    store: StateStore,
    ran: Callable[..., Ran],
    clock: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CERTCTRL_CONFIG_DIR", str(layout.root))
    store.session.save_tokens(Tokens(access_token="a.b.c", refresh_token="rt_x"))
    store.installed.save_certificates({7: record()})
    argv = line.replace("DIR", str(layout.root)).split()
    assert recognised(argv, Invocation()) is not None
    fast = ran(*argv)
    monkeypatch.setattr(main, "recognised", lambda argv, invoked: None)
    assert fast == ran(*argv)
    assert fast.out and not fast.err


@pytest.mark.parametrize("line", PARSED)
def test_other_command_lines_are_left_to_the_parser(line: str) -> None:
    assert recognised(line.split(), Invocation()) is None


@pytest.mark.parametrize("command", ["status", "list-certs"])
def test_errors_name_the_directory_that_was_given(command: str, ran: Callable[..., Ran]) -> None:
    done = ran("-c", "/nonexistent", command)
    assert done.status == 78 and "fix: cert-ctrl -c /nonexistent init" in done.err


def test_the_daemon_starts_without_the_parser(layout: ConfigDir) -> None:
    invoked = Invocation()
    assert recognised(["-c", str(layout.root), "--keep-running"], invoked) is not None
    assert invoked.config_dir == str(layout.root)
    assert recognised(["--keep-running"], invoked) is not None
    assert invoked.config_dir is None
