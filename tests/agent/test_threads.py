"""The threads of the daemon: as many as are useful, each job run to its end."""

from __future__ import annotations

import threading
from collections import Counter

import trio

from certctrl.agent.setup import WORKING_THREADS, in_thread


async def test_no_more_jobs_run_than_there_are_threads() -> None:
    counts, lock, enough = Counter[str](), threading.Lock(), threading.Event()

    def job() -> None:
        with lock:
            counts["running"] += 1
            counts["most"] = max(counts["most"], counts["running"])
            counts["begun"] += 1
            if counts["running"] == WORKING_THREADS:
                enough.set()
        enough.wait(30)
        with lock:
            counts["running"] -= 1

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(3 * WORKING_THREADS):
                nursery.start_soon(in_thread, job)
    assert (counts["begun"], counts["most"], counts["running"]) == (3 * WORKING_THREADS, WORKING_THREADS, 0)


async def test_a_failed_job_frees_its_thread() -> None:
    def job() -> None:
        raise ValueError("no")

    for _ in range(2 * WORKING_THREADS):
        try:
            await in_thread(job)
        except ValueError:
            continue
    with trio.fail_after(60):
        assert await in_thread(lambda: 1) == 1
