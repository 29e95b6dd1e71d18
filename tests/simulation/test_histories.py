"""Random histories of the whole agent; see docs/evidence/simulation.md.

``CERTCTRL_TEST_HISTORIES`` is their number; ``CERTCTRL_TEST_SEED`` with ``-k replay`` repeats one.
"""

from __future__ import annotations

import os

import pytest
from simulation.history import run_history

HISTORIES = int(os.environ.get("CERTCTRL_TEST_HISTORIES", "500"))
CHUNKS = max(20, HISTORIES // 500)
SEED = os.environ.get("CERTCTRL_TEST_SEED", "")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_histories_keep_all_guarantees_and_converge(chunk: int) -> None:
    for seed in range(1 + chunk, HISTORIES + 1, CHUNKS):
        run_history(seed)


@pytest.mark.parametrize("seed", [2, 9])
def test_a_seed_determines_the_history(seed: int) -> None:
    assert run_history(seed).mark == run_history(seed).mark


@pytest.mark.skipif(not SEED, reason="set CERTCTRL_TEST_SEED to repeat a history")
def test_replay_of_one_history() -> None:
    run_history(int(SEED))
