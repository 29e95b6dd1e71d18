"""Run commands so that nothing of them is left and nothing of ours is in them (safety.md §4.4, T14, T15).

**Who ends what a command started.** A command may leave its process group and session, fork twice, ignore TERM,
stop itself, hold the output pipe open. The one thing it cannot do is choose its ancestors: an orphan goes to
the nearest living *subreaper* above it. So each command gets a small supervisor process of its own, which sets
``PR_SET_CHILD_SUBREAPER`` for itself, reads the output into a bounded buffer, keeps the deadline, and answers
when it has no children left: then nothing is left. The choices that were not taken:

* The agent itself as subreaper: it would inherit the orphans of all commands running side by side (and of every
  library, and of the test runner) and could not tell which command an orphan belongs to.
* A pid namespace kills everything with its first process, but needs privileges that the hardened unit takes
  away, and a command in it cannot signal the service it is to reload.
* ``cgroup.kill`` needs a delegated cgroup v2, which is the exception. Under systemd it remains as the unit's net.
* ``preexec_fn`` or a fork of the agent runs Python in a copy of a threaded process, which may hang on a lock.

The price is one bare interpreter per command: measured 20 ms of wall time and 16 ms of CPU, 11 MiB while it runs.
`Proc.prepare` starts one ahead, which waits when the deployment comes to its reload; then it is 5 ms. What remains
open: a command running as the agent's own user can kill its supervisor. Its leader then dies with it
(``PR_SET_PDEATHSIG``) and its session is killed; a descendant that had left that session escapes.

A side effect to know: a command cannot leave a daemon behind. Services are to be reloaded by a signal or
through the service manager, whose processes are not the command's.
"""

from __future__ import annotations

from certctrl.install.process.proc import Proc
from certctrl.install.process.result import CommandResult

__all__ = ["CommandResult", "Proc"]
