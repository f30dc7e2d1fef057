"""Test that a killed process leaves the old or the new, whole. `kill.py` does more of the same."""

import os

import pytest
import torch

from tests.fuzz.kill import BY_NAME, kill


# Kind X8: a mix of two models or classifiers after a kill; kinds U and Y1: work that is lost.
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start in no time")
@pytest.mark.parametrize("name", BY_NAME)
def test_a_killed_process_leaves_the_old_or_the_new(name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # runs are the same to the bit only with as many threads
    try:
        found = kill(BY_NAME[name], times=3, seed=1)
    finally:
        torch.set_num_threads(threads)
    assert found.total() == 3
