"""An automatic batch size grows while that pays, and halves where memory ends; rows do not depend on it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from medseg_attack import registry
from medseg_attack.errors import is_out_of_memory
from medseg_attack.evaluation.loop import PendingRun, run_attacks
from medseg_attack.runs.folder import RunFolder
from medseg_attack.runtime import FIRST, BatchSize
from medseg_attack.types import Case, CaseRef, Image, LogOdds, Mask, Task, Window

SLICES, SIDE = 40, 8
TASK = Task("t", ("organ",))


def sizes_after(rates: list[float], cases: int = 1000) -> list[int]:
    """The sizes after chunks that were attacked at these rates."""
    batch, sizes = BatchSize(), []
    for rate in rates:
        batch.note(cases, cases / rate)
        sizes.append(batch.size)
    return sizes


def test_it_doubles_while_it_gains_and_then_stays() -> None:
    assert sizes_after([10, 19, 30, 30.5, 99]) == [2 * FIRST, 4 * FIRST, 8 * FIRST, 4 * FIRST, 4 * FIRST]


def test_a_chunk_that_fills_no_batch_says_nothing() -> None:
    assert sizes_after([10, 20, 30], cases=FIRST) == [FIRST] * 3


def test_a_given_size_stays() -> None:
    batch = BatchSize.of(5)
    batch.note(1000, 1.0)
    assert batch.size == 5
    with pytest.raises(MemoryError):
        batch.halve(MemoryError(), 5)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (MemoryError(), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


def test_what_torch_raises_where_memory_ends_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


class Slices:
    """Slices of one scan, of random numbers."""

    def refs(self) -> list[CaseRef]:
        return [CaseRef(f"s{n}", "scan", "patient", (SIDE, SIDE), n) for n in range(SLICES)]

    def read(self, ref: CaseRef) -> Case:
        draw = torch.Generator().manual_seed(int(ref.id[1:]))
        image = torch.rand(1, SIDE, SIDE, generator=draw)
        return Case(ref.id, ref.volume, ref.group, image, image > 0.5, (1.0, 1.0), Window(0, 1))


@dataclass
class Small:
    """A model whose memory takes few cases at a time."""

    most: int
    error: str = "CUDA out of memory"
    task: Task = TASK

    def __call__(self, image: Image) -> LogOdds:
        if len(image) > self.most:
            raise torch.OutOfMemoryError(self.error)
        return 9 * (image - 0.5)

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds >= 0


def run(folder: Path, most: int, batch_size: int | None) -> RunFolder:
    result = RunFolder.open(folder, {"attack": "fgsm"})
    data = Slices()
    pending = PendingRun(registry.build("fgsm", "attack"), result)
    for _ in run_attacks(Small(most), data, [pending], data.refs(), batch_size=batch_size):
        pass
    return result


def test_it_halves_where_memory_ends_says_so_and_finds_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    halved, single = run(tmp_path / "halved", 3, None), run(tmp_path / "single", 1, 1)
    assert halved.batch_sizes == [2]
    assert [record.getMessage() for record in caplog.records] == [
        "note: 8 cases per batch need more memory than there is; going on with 4",
        "note: 4 cases per batch need more memory than there is; going on with 2",
    ]
    assert halved.rows().equals(single.rows())


def test_one_case_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, 0, None)
