"""Memory of a step is measured whether or not the process had as much before."""

import sys

import pytest
import torch

from medseg_attack.runtime import memory_mb


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is Linux's to forget")
def test_memory_that_was_free_but_kept_counts_when_it_is_taken_again() -> None:
    torch.zeros(7_500_000)  # from now on the allocator keeps pieces of this size
    pieces, last = [torch.ones(100_000) for _ in range(200)], torch.ones(100_000)
    del pieces  # below the last one, so that they cannot leave by themselves
    n_megabytes = memory_mb(lambda: [torch.ones(100_000) for _ in range(100)], torch.device("cpu"))
    assert 36 < n_megabytes < 60  # 40 MB
    assert last.sum() == 100_000
