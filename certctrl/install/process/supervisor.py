"""Supervise one command: a separate program (``python -I -S supervisor.py``), never run in the agent.

It reads one order from standard input, makes itself the *subreaper* of everything that the command starts, runs the
command, and answers on standard output once no process of it is left. Even if a descendant tries to escape
(``setsid``, double fork, a parent that exits), the kernel gives it to its nearest living subreaper, which is this
process; so "no child left" (ECHILD) means that nothing is left. ``__init__.py`` says why this is a process.

Imports are few and low-level (``posix``, not ``os``; ``_ctypes``, not ``ctypes``), because it starts before each
command.

Order: eight decimal digits of length, then a marshalled dict. If standard input ends after that (the agent wants to
stop, or is gone), the command is ended now. Answer: ``started PID`` when the command runs; at the end
``KIND VALUE TIMED_OUT SWEPT TOTAL HEAD TAIL`` (all but KIND decimal), then HEAD + TAIL bytes of output.
"""

from __future__ import annotations

import _ctypes
import _signal  # type: ignore[import-not-found]
import marshal
import posix as os
import resource
import select
from io import FileIO
from time import monotonic

TYPE_CHECKING = False  # true for type checkers; importing typing would double the start-up time
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, RTLD_NOW, EINVAL = 1, 36, 38, 2, 22
IDLE_SECONDS = 60.0  # how long an idle supervisor waits for its order
SHORT_GRACE = 1.0  # seconds between TERM and KILL when the agent wants to stop
SWEEP_LIMIT = 10.0  # seconds; only a process blocked in the kernel (D state) outlives a sweep


def prctl(option: int, value: int) -> None:
    """Set one attribute of this process. Raises OSError."""
    found = _ctypes.dlsym(_ctypes.dlopen(None, RTLD_NOW), "prctl")  # type: ignore[arg-type]
    if _ctypes.call_function(found, (option, value, 0, 0, 0)):
        raise OSError(EINVAL, "prctl")  # the only errno of these options


def attempt(call: Callable[..., object], *args: object) -> bool:
    """Call and return whether it succeeded; it fails if the process has just ended or is not ours."""
    try:
        call(*args)
    except OSError:
        return False
    return True


def read_order(fd: int) -> dict[str, Any] | None:
    """Return the order; None if the agent is gone or sends none in time."""
    need, data = 8, b""
    while len(data) < need:
        ready, _, _ = select.select([fd], [], [], IDLE_SECONDS)
        part = os.read(fd, need - len(data)) if ready else b""
        if not part:
            return None
        data += part
        if need == 8 and len(data) == 8:
            need = 8 + int(data)
    return marshal.loads(data[8:])  # type: ignore[no-any-return]


def children_of(pid: int) -> list[int]:
    """Return the direct children of this process (``pid``), even if /proc hides those of other users."""
    path = f"/proc/{pid}/task/{pid}/children"
    with open(path if attempt(os.stat, path) else "/dev/null", "rb") as file:
        return [int(word) for word in file.read().split()]


def process_table() -> dict[int, tuple[int, int, int]]:
    """Return pid -> (parent, session, start time) of every visible process."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return {pid: facts for pid in pids if (facts := facts_of(pid)) is not None}


def facts_of(pid: int) -> tuple[int, int, int] | None:
    """Return (parent, session, start time) of a living process; None for a zombie or an unknown pid."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if words[0] in (b"Z", b"X") else (int(words[1]), int(words[3]), int(words[19]))


def descendants(root: int) -> list[tuple[int, int]]:
    """Return (pid, start time) of all living descendants of a process, nearest first."""
    table = process_table()
    below: dict[int, list[int]] = {}
    for pid, (parent, _, _) in table.items():
        below.setdefault(parent, []).append(pid)
    found = below.get(root, [])
    for pid in found:  # grows during the loop
        found += below.get(pid, [])
    return [(pid, table[pid][2]) for pid in found]


def send(pid: int, start: int, signum: int) -> bool:
    """Signal a process if its start time matches, so that a reused pid is not signalled."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    facts = facts_of(pid)
    sent = facts is not None and facts[2] == start and attempt(_signal.pidfd_send_signal, handle, signum)
    os.close(handle)
    return sent


class Command:
    """The running command: its leader, its output and its descendants."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.keep: int = order["keep"]
        self.head, self.tail, self.total = bytearray(), bytearray(), 0
        self.status: int | None = None  # of the leader, as waitpid returns it
        self.swept: set[int] = set()
        self.pipe, writer = os.pipe()
        self.errors, reporter = os.pipe()
        me, self.pid = os.getpid(), os.fork()
        if self.pid == 0:
            become(order, writer, reporter, me)
        os.close(writer)
        os.close(reporter)
        os.set_blocking(self.pipe, False)

    def failure(self) -> int:
        """Return the errno of a failed exec, 0 if it succeeded."""
        with FileIO(self.errors) as file:
            return int(file.read() or 0)

    def take_output(self) -> bool:
        """Read available output, keep its start and end; return False if there is none now or it has ended."""
        try:
            data = os.read(self.pipe, 65_536)
        except BlockingIOError:
            return False
        self.total += len(data)
        room = max(0, self.keep - len(self.head))
        self.head += data[:room]
        self.tail += data[room:]
        del self.tail[: -self.keep]
        return bool(data)

    def reap(self) -> bool:
        """Reap ended processes; return False if no descendant is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status = status

    def signal_group(self, signum: int) -> None:
        """Signal the command's process group, as long as its id cannot be reused."""
        if self.status is None:
            attempt(os.killpg, self.pid, signum)

    def terminate(self) -> None:
        """Send TERM to all processes, and CONT so that stopped ones receive it."""
        self.signal_group(_signal.SIGTERM)
        self.signal_group(_signal.SIGCONT)
        for pid, start in descendants(os.getpid()):
            if pid != self.pid:
                send(pid, start, _signal.SIGTERM)
                send(pid, start, _signal.SIGCONT)

    def sweep(self) -> bool:
        """Kill all remaining processes; return False if one could not be killed in time.

        First they are stopped, in rounds until a round finds no new one: a stopped process no longer forks but still
        counts against the limits, so a fork bomb starves instead of outrunning its killer.
        """
        me, limit = os.getpid(), monotonic() + SWEEP_LIMIT
        attempt(os.nice, -10)  # only root may; for others the limits contain a fork bomb
        self.signal_group(_signal.SIGSTOP)
        seen: set[tuple[int, int]] = set()
        while monotonic() < limit and (new := set(descendants(me)) - seen):
            for pid, start in new:
                send(pid, start, _signal.SIGSTOP)
            seen |= new
        self.swept |= {pid for pid, _ in seen} - {self.pid}
        self.signal_group(_signal.SIGKILL)
        while self.reap():
            if monotonic() > limit:
                return False
            left = descendants(me)
            self.swept |= {pid for pid, start in left if send(pid, start, _signal.SIGKILL)} - {self.pid}
            for pid in () if left else children_of(me):  # hidden in /proc, but listed as our children
                # a child's pid is not reused before it is reaped
                self.swept |= ({pid} if attempt(os.kill, pid, _signal.SIGKILL) else set()) - {self.pid}
            select.select([], [], [], 0.002)
        return True


def become(order: dict[str, Any], output: int, reporter: int, parent: int) -> None:
    """Turn this forked child into the command. Never returns."""
    try:
        os.setsid()
        # written by the child, so that it comes before anything that the command does
        attempt(FileIO(1, "w", closefd=False).write, b"started %d\n" % os.getpid())
        null = os.open("/dev/null", os.O_RDONLY)
        for old, new in ((null, 0), (output, 1), (output, 2)):
            os.dup2(old, new)  # all other descriptors close at exec
        os.umask(0o077)
        os.chdir(order["cwd"])
        for number, soft, hard in order["limits"]:
            resource.setrlimit(number, (soft, hard))
        if order["user"] is not None:
            uid, gid, groups = order["user"]
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)  # after the change of user, which resets it
        if os.getppid() != parent:
            return  # it has already died
        for signum in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(signum, _signal.SIG_DFL)  # Python ignores these two, and exec would inherit that
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        os.execve(order["argv"][0], order["argv"], order["env"])
    except OSError as error:
        FileIO(reporter, "w").write(b"%d" % (error.errno or 1))
    finally:
        os._exit(127)


def supervise(command: Command, control: int, deadline: float, grace: float, linger: float) -> bool:
    """Wait until no process of the command is left; return whether the deadline ended it."""
    leader, never = os.pidfd_open(command.pid), float("inf")
    poll = select.poll()
    for fd in (command.pipe, control, leader):
        poll.register(fd, select.POLLIN)
    timed_out, kill_at, leave_at = False, never, never
    while command.reap():
        now = monotonic()
        if command.status is not None and leave_at == never:
            leave_at = now + linger
            poll.unregister(leader)
        if now >= min(kill_at, leave_at):
            command.sweep()
            break
        if now >= deadline and kill_at == never:
            timed_out, kill_at = True, now + grace
            command.terminate()
        tick = 1.0 if leave_at == never else 0.01
        wake = min(kill_at, leave_at, deadline if kill_at == never else never, now + tick)
        for fd, _ in poll.poll(max(1.0, (wake - now) * 1000)):
            if fd == command.pipe and not command.take_output():
                poll.unregister(fd)
            elif fd == control:
                poll.unregister(fd)
                kill_at = min(kill_at, now + SHORT_GRACE)
                command.terminate()
    for _ in range(16):  # the rest in the pipe; more than it can hold comes from other processes and does not count
        if not command.take_output():
            break
    return timed_out


def main() -> None:
    """Read the order, run the command and answer; works the same if the agent is gone."""
    order = read_order(0)
    if order is None:
        return
    answer, start = FileIO(1, "w"), monotonic()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        command = Command(order)
    except OSError as error:
        attempt(answer.write, b"failed %d 0 0 0 0 0\n" % (error.errno or 1))
        return
    try:
        failure = command.failure()
        timed_out = supervise(command, 0, start + order["deadline"], order["grace"], order["linger"])
    finally:  # this program never exits before the command
        if command.reap():
            command.sweep()
    kind, value = (b"failed", failure) if failure else outcome_of(command.status)
    facts = (value, timed_out, len(command.swept), command.total, len(command.head), len(command.tail))
    attempt(answer.write, kind + b" %d %d %d %d %d %d\n" % facts + command.head + command.tail)


def outcome_of(status: int | None) -> tuple[bytes, int]:
    """Return kind and value of the answer for the leader's status."""
    if status is None:
        return b"stuck", 0
    return (b"signal", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (b"exit", os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
    os._exit(0)  # skips the interpreter's shutdown, which would take milliseconds
