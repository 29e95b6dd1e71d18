"""The rotated log file: bounded in size, number and age; private; a failing disk never stops the agent."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from examples import at_most
from hypothesis import given, settings
from hypothesis import strategies as st

from certctrl.errors import DiskError
from certctrl.logs.file import DAY, RETRY_SECONDS, LogFile
from certctrl.logs.setup import TextFormatter
from certctrl.store.disk.fs import Fs, Handle, RealFs

AT = 1_759_470_356.0


def opened(path: Path, fs: Fs | None = None, **limits: Any) -> LogFile:
    handler = LogFile(path, fs or RealFs(), **{"max_bytes": 4096, "max_age_days": 30.0, "keep_files": 2, **limits})
    handler.setFormatter(TextFormatter())
    return handler


def write(handler: LogFile, text: str, at: float = AT) -> None:
    record = logging.LogRecord("certctrl.Poll", logging.INFO, "", 0, text, None, None)
    record.created = at
    handler.handle(record)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_rotation_by_size_keeps_the_newest_files(tmp_path: Path) -> None:
    handler = opened(tmp_path / "agent.log")
    for number in range(300):
        write(handler, f"line {number:04d} {'x' * 80}")
    handler.close()
    assert names(tmp_path) == ["agent.log", "agent.log.1", "agent.log.2"]
    assert all((tmp_path / name).stat().st_size <= 4096 for name in names(tmp_path))
    lines = [
        line
        for name in ("agent.log.2", "agent.log.1", "agent.log")
        for line in (tmp_path / name).read_text().splitlines()
    ]
    numbers = [int(line.split("line ")[1][:4]) for line in lines]
    assert numbers == list(range(numbers[0], 300)), "the newest lines, in order, without gaps or duplicates"


@given(st.integers(0, 4), st.integers(200, 2000), st.lists(st.integers(1, 300), min_size=1, max_size=60))
@settings(max_examples=at_most(40))
def test_the_total_size_is_bounded(
    tmp_path_factory: pytest.TempPathFactory, keep: int, most: int, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    handler = opened(folder / "a.log", max_bytes=most, keep_files=keep)
    for size in sizes:
        write(handler, "y" * size)
    handler.close()
    total = sum((folder / name).stat().st_size for name in names(folder))
    assert len(names(folder)) <= keep + 1
    assert total <= (keep + 1) * (most + 400)


def test_every_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    class Watching(RealFs):
        modes: list[int]

        def write(self, handle: Handle, data: bytes) -> None:
            self.modes.append(os.fstat(handle.fd).st_mode & 0o777)
            super().write(handle, data)

    fs = Watching()
    fs.modes = []
    before = os.umask(0)
    try:
        handler = opened(tmp_path / "agent.log", fs, max_bytes=200)
        for _ in range(10):
            write(handler, "z" * 90)
        handler.close()
    finally:
        os.umask(before)
    assert fs.modes == [0o600] * 10


def test_the_mode_of_an_existing_file_is_corrected(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    path.write_text("old\n")
    path.chmod(0o644)
    handler = opened(path)
    write(handler, "new")
    handler.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().splitlines()[0] == "old", "appended, not replaced"


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (tmp_path / "agent.log").symlink_to(victim)
    handler = opened(tmp_path / "agent.log")
    write(handler, "new")
    handler.close()
    assert victim.read_text() == "precious\n"


def test_rotation_by_age_of_the_first_line_across_restarts(tmp_path: Path) -> None:
    path = tmp_path / "agent.log"
    for day in range(3):
        handler = opened(path, max_age_days=1.5)
        write(handler, f"day {day}", AT + day * DAY)
        handler.close()
    assert "day 2" in path.read_text()
    assert "day 0" in (tmp_path / "agent.log.1").read_text() and "day 1" in (tmp_path / "agent.log.1").read_text()


def test_old_and_surplus_files_are_removed(tmp_path: Path) -> None:
    for number, age in ((1, 1), (2, 40), (7, 1)):
        old = tmp_path / f"agent.log.{number}"
        old.write_text("x\n")
        os.utime(old, (AT - age * DAY, AT - age * DAY))
    (tmp_path / "agent.log.bak").write_text("not ours\n")
    handler = opened(tmp_path / "agent.log", max_bytes=100)
    write(handler, "a" * 80)
    write(handler, "b" * 80)
    handler.close()
    assert names(tmp_path) == ["agent.log", "agent.log.1", "agent.log.2", "agent.log.bak"]
    assert (tmp_path / "agent.log.2").read_text() == "x\n", (
        "the file of one day ago was renamed, the one of 40 days ago removed"
    )


def test_keeping_no_files_starts_an_empty_file(tmp_path: Path) -> None:
    handler = opened(tmp_path / "agent.log", max_bytes=100, keep_files=0)
    write(handler, "a" * 80)
    write(handler, "b" * 80)
    handler.close()
    assert names(tmp_path) == ["agent.log"]
    assert "aaa" not in (tmp_path / "agent.log").read_text()


class Failing(RealFs):
    """A disk that is full while ``broken`` is set."""

    def __init__(self) -> None:
        self.broken = False
        self.tries = 0

    def write(self, handle: Handle, data: bytes) -> None:
        self.tries += 1
        if self.broken:
            raise DiskError("full", errno=28)
        super().write(handle, data)


def test_a_full_disk_only_loses_lines(tmp_path: Path) -> None:
    fs = Failing()
    handler = opened(tmp_path / "agent.log", fs)
    write(handler, "first")
    fs.broken = True
    for number in range(5):
        write(handler, "lost", AT + number)
    assert fs.tries == 2, "the disk is not tried for every line"
    fs.broken = False
    write(handler, "lost too", AT + RETRY_SECONDS - 1)
    write(handler, "back", AT + RETRY_SECONDS + 5)
    handler.close()
    lines = (tmp_path / "agent.log").read_text().splitlines()
    assert [line[22:] for line in lines] == [
        "[INFO] [Poll] first",
        "[WARN] [Log] 6 lines missing here",
        "[INFO] [Poll] back",
    ]


def test_a_missing_directory_is_not_an_error(tmp_path: Path) -> None:
    handler = opened(tmp_path / "gone" / "agent.log")
    write(handler, "x")
    (tmp_path / "gone").mkdir()
    write(handler, "y", AT + RETRY_SECONDS + 1)
    handler.close()
    assert "y" in (tmp_path / "gone" / "agent.log").read_text()
