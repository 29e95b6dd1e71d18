"""Copies to bind-mounted files: deployed, rolled back and withdrawn without replacing them."""

from __future__ import annotations

import errno
from pathlib import Path

import attrs
import pytest
from install_host import APPLIED, FAILED, RELOAD, ROLLED_BACK, Host, commands, kinds, leftovers
from trio.testing import MockClock

from certctrl.install.plan.render import plan_lines
from certctrl.model.plan import CopyAction, ExecAction, InstallItem, VerifyTls, WriteMethod
from certctrl.store.disk.fs import Handle, RealFs, disk_error


class Mounted(RealFs):
    """A disk on which some files are mount points."""

    def __init__(self, *paths: Path) -> None:
        self.paths = {str(path) for path in paths}

    def mount(self, handle: Handle) -> int:
        return 2 if handle.path in self.paths else 1

    def rename(self, old: str | Path, new: str | Path, at: Handle | None = None) -> None:
        self._refuse(new, at)
        super().rename(old, new, at)

    def unlink(self, path: str | Path, at: Handle | None = None) -> None:
        self._refuse(path, at)
        super().unlink(path, at)

    def _refuse(self, path: str | Path, at: Handle | None) -> None:
        if at is not None and f"{at.path}/{path}" in self.paths:
            raise disk_error("replace", f"{at.path}/{path}", OSError(errno.EBUSY, "busy"))


@pytest.fixture
def files(host: Host) -> tuple[Path, Path]:
    """Two bind-mounted files, empty as before a first delivery."""
    key, chain = host.out / "a.key", host.out / "a.pem"
    for path in (key, chain):
        path.touch(0o600)
    host.fs = Mounted(key, chain)
    host.allow(commands=commands(RELOAD))
    host.start()
    return key, chain


def items_for(key: Path, chain: Path, write: WriteMethod = WriteMethod.IN_PLACE) -> list[InstallItem]:
    return [
        CopyAction(
            id="c", ob_id=1, sources=("private.key", "fullchain.pem"), targets=(str(key), str(chain)), write=write
        ),
        ExecAction(id="r", cmd_argv=RELOAD, depends_on=("c",), verify=VerifyTls(host="127.0.0.1", port=1001)),
    ]


async def test_a_renewal_keeps_the_inodes(clock: MockClock, host: Host, files: tuple[Path, Path]) -> None:
    items, service = items_for(*files), host.serve(RELOAD, 1, 1001)
    service.key, service.certificate = files
    before = [path.stat().st_ino for path in files]
    for _ in range(2):
        assert kinds(await host.deliver(1, items=items)) == {1: APPLIED}
        assert service.served == host.live(1)
    assert [path.stat().st_ino for path in files] == before
    assert leftovers(host) == []
    files[0].write_bytes(b"tampered")
    assert "in place" in plan_lines(await host.installer.plan(items))[0].why


async def test_a_refused_renewal_is_rolled_back(clock: MockClock, host: Host, files: tuple[Path, Path]) -> None:
    items, service = items_for(*files), host.serve(RELOAD, 1, 1001)
    service.key, service.certificate = files
    await host.deliver(1, items=items)
    before = [path.read_bytes() for path in files]
    prepared = await host.installer.stage(host.bundle(1), items)
    service.refuses.add(prepared.facts.fingerprint_sha256)
    assert kinds(await host.installer.converge([prepared], items)) == {1: ROLLED_BACK}
    assert [path.read_bytes() for path in files] == before
    assert leftovers(host) == []


async def test_a_withdrawn_certificate_empties_them(clock: MockClock, host: Host, files: tuple[Path, Path]) -> None:
    items = [attrs.evolve(one, verify=None) for one in items_for(*files)]
    await host.deliver(1, items=items)
    outcome = await host.installer.withdraw(1, revoked=True, items=items)
    assert (outcome.kind, outcome.detail) == (APPLIED, "removed")
    assert [path.read_bytes() for path in files] == [b"", b""]
    await host.installer.record_alert(1)
    assert (await host.installer.withdraw(1, revoked=True, items=items)).ok, "nothing of it stays"


async def test_without_the_option_the_item_is_refused_before_anything_is_written(
    clock: MockClock, host: Host, files: tuple[Path, Path]
) -> None:
    outcome = (await host.deliver(1, items=items_for(*files, WriteMethod.REPLACE)))[1]
    assert outcome.kind is FAILED
    assert "is a mount point" in outcome.detail and '"write": "in_place"' in outcome.detail
    assert [path.read_bytes() for path in files] == [b"", b""]
