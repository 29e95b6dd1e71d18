"""The memory file in which a new file is sent to the root helper, on kernels that restrict or lack it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from socket import AF_UNIX, SOCK_SEQPACKET, socket

import pytest

from certctrl.errors import DiskError
from certctrl.helper.client import HelperClient, sealed
from certctrl.helper.requests import read_sealed

NOEXEC_SEAL = 0x8
REAL = os.memfd_create
SETTING = Path("/proc/sys/vm/memfd_noexec")


def kernel(monkeypatch: pytest.MonkeyPatch, refuse: Callable[[int], int]) -> list[int]:
    """Make the kernel answer with an error number, 0 for none, to these flags; return the flags that it is asked for."""
    asked: list[int] = []

    def create(name: str, flags: int) -> int:
        asked.append(flags)
        if code := refuse(flags):
            raise OSError(code, os.strerror(code))
        return REAL(name, flags & ~NOEXEC_SEAL)

    monkeypatch.setattr(os, "memfd_create", create)
    return asked


def sent_through() -> bytes:
    fd = sealed(b"key")
    try:
        return read_sealed(fd)
    finally:
        os.close(fd)


def test_a_kernel_that_demands_files_that_cannot_be_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 6.3 to 6.5 with vm.memfd_noexec=2 refuses a call without the flag."""
    asked = kernel(monkeypatch, lambda flags: 0 if flags & NOEXEC_SEAL else errno.EACCES)
    assert sent_through() == b"key" and len(asked) == 1


def test_a_kernel_that_does_not_know_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = kernel(monkeypatch, lambda flags: errno.EINVAL if flags & NOEXEC_SEAL else 0)
    assert sent_through() == b"key" and len(asked) == 2


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EMFILE])
def test_a_kernel_without_such_files_is_reported_as_such(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Found by review: it was reported as a socket that cannot be reached, with `systemctl status` as the fix."""
    kernel(monkeypatch, lambda flags: code)
    with pytest.raises(DiskError, match=f"sealed memory file.*{os.strerror(code)}") as caught:
        sealed(b"key")
    assert caught.value.errno == code and "memfd_create" in (caught.value.fix or "")


def test_a_kernel_that_does_not_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "memfd_create", lambda name, flags: REAL(name, 0))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(DiskError, match="sealed memory file"):
        sealed(b"key")
    assert os.listdir("/proc/self/fd") == before, "nothing stays open"


def test_a_deployment_reports_it_instead_of_a_bug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel(monkeypatch, lambda flags: errno.ENOSYS)
    with socket(AF_UNIX, SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        with pytest.raises(DiskError, match="sealed memory file"):
            HelperClient.at(str(tmp_path / "sock")).stage("/etc/x/a.key", ".a.key.01.tmp", ".a.key.02.tmp", b"key")


@pytest.mark.integration
@pytest.mark.root
def test_the_strictest_setting_of_this_kernel(need: Callable[[str], str]) -> None:
    """In a process namespace of its own, which has its own setting since Linux 6.3."""
    if not SETTING.exists():
        pytest.skip("this kernel has no vm.memfd_noexec")
    program = (
        "from pathlib import Path; from certctrl.helper.client import sealed; from certctrl.helper.requests import read_sealed;"
        f"Path('{SETTING}').write_text('2'); print(read_sealed(sealed(b'key')), Path('{SETTING}').read_text().strip())"
    )
    argv = [need("unshare"), "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "b'key' 2", done.stderr
