"""``--keep-running``: run the daemon until it stops."""

from __future__ import annotations

import gc
import logging
import os
from typing import TYPE_CHECKING, Any

from certctrl.cli.runtime import report, run

if TYPE_CHECKING:
    from certctrl.agent.push_mode import Questions
    from certctrl.cli.invocation import Invocation
    from certctrl.model.questions import QuestionKind
    from certctrl.store.layout import ConfigDir


def keep_running(invoked: Invocation) -> int:
    """Run the daemon in the foreground; return 0 after SIGTERM, 77 if the device was revoked or refused."""
    from certctrl.agent.clock import wall_now
    from certctrl.agent.memory import share_one_heap
    from certctrl.logs.stderr import lossy_stderr

    gc.enable()  # what the imports leave behind would stay resident
    share_one_heap()
    with lossy_stderr(wall_now):
        return _keep_running(invoked)


def _keep_running(invoked: Invocation) -> int:
    from certctrl.logs.setup import Logs
    from certctrl.store.config.files import load_config
    from certctrl.store.disk.fs import RealFs

    layout = invoked.layout()
    fs = RealFs()
    config = load_config(layout, os.environ).config
    logs = Logs(layout, fs, debug=invoked.debug, verbosity=invoked.verbosity)
    logs.configure(config.log)
    try:
        from certctrl.agent.package_guard import guarded_packages
        from certctrl.agent.run import run_agent
        from certctrl.agent.setup import Seams

        async def agent() -> int:
            seams = Seams(
                fs=fs, on_reload=lambda fresh: logs.configure(fresh.log), questions=late_questions(invoked, layout)
            )
            stop = await run_agent(layout.root, seams=seams)
            return int(stop.reason.exit_status)

        _tune_gc()
        with guarded_packages():
            return run(agent)
    except BaseException as error:
        status = report(error, invoked)
        if config.log.file:  # stderr has it already
            logging.getLogger("certctrl.Agent").critical("Ended with exit status %d: %s", status, error)
        return status
    finally:
        logs.close()


def late_questions(invoked: Invocation, layout: ConfigDir) -> Questions:
    """Return a function that answers the control plane's questions, loaded with the first one."""

    async def answer(question: QuestionKind) -> Any:
        from certctrl.cli.questions import answer_of

        return await answer_of(invoked, layout, question)

    return answer


def _tune_gc() -> None:
    """Exclude the start-up objects from garbage collection and collect less often.

    Collections took a tenth of the time of a burst.
    """
    import linecache

    import certctrl.net.transport  # noqa: F401  (the largest import, needed soon)
    from certctrl.agent.memory import release_memory

    linecache.clearcache()  # attrs caches the source of generated methods
    release_memory()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
