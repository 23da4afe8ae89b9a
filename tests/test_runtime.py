"""The number of threads: no more than the cores that a container may use."""

import pytest
import torch

from medseg_attack import runtime


@pytest.mark.parametrize(
    ("cores", "environment", "threads"),
    [(2, {}, 2), (64, {}, 8), (2, {"OMP_NUM_THREADS": "8"}, 8)],
    ids=["a quota", "cores for all threads", "a number that was asked for"],
)
def test_torch_gets_no_more_threads_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, environment: dict[str, str], threads: int
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime, "cores", lambda: cores)
    try:
        torch.set_num_threads(8)
        assert runtime.pick_device("cpu").type == "cpu"
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_gpu_is_waited_for_and_a_cpu_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    for name in ("cpu", "cuda:1"):
        runtime.wait_for(torch.device(name))
    assert waited == ["cuda:1"]
