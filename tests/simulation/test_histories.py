"""Random histories of the whole agent; see docs/evidence/simulation.md.

``CERTCTRL_TEST_HISTORIES`` is their number; ``CERTCTRL_TEST_SEED`` with ``-k replay`` repeats one.
"""

from __future__ import annotations

import os

import attrs
import pytest
from simulation.history import run_history, setting_for

HISTORIES = int(os.environ.get("CERTCTRL_TEST_HISTORIES", "500"))
CHUNKS = max(20, HISTORIES // 500)
SEED = os.environ.get("CERTCTRL_TEST_SEED", "")
BATCHES = {"renew_together": 8.0, "issue": 3.0}


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_histories_keep_all_guarantees_and_converge(chunk: int) -> None:
    for seed in range(1 + chunk, HISTORIES + 1, CHUNKS):
        run_history(seed)


@pytest.mark.parametrize("chunk", range(4))
def test_poll_mode_and_features_may_change_at_any_time(chunk: int) -> None:
    """With many atomic batches, whose signals may come with or without them."""
    for seed in range(1 + chunk, HISTORIES // 10 + 1, 4):
        run_history(seed, attrs.evolve(setting_for(seed), changing=True, emphasis=BATCHES))


@pytest.mark.parametrize("seed", [2, 9, 30_023])
def test_a_seed_determines_the_history(seed: int) -> None:
    assert run_history(seed).mark == run_history(seed).mark


@pytest.mark.skipif(not SEED, reason="set CERTCTRL_TEST_SEED to repeat a history")
def test_replay_of_one_history() -> None:
    run_history(int(SEED))
