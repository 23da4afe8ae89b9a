"""The part of the work that a scheduler's variables give to a process."""

import pytest

from medseg_attack.errors import InputError
from medseg_attack.storage.ranks import Rank, joint_rank


def array(task: int, tasks: list[int], step: int = 1) -> dict[str, str]:
    """The variables that SLURM sets for one task of an array."""
    facts = {"ID": task, "COUNT": len(tasks), "MIN": tasks[0], "MAX": tasks[-1], "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in facts.items()}


def torchrun(rank: int, world: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}


@pytest.mark.parametrize("tasks", [[0, 1, 2], [1, 2, 3], [4, 8, 12], [7]])
@pytest.mark.parametrize("world", [1, 2])
def test_every_part_belongs_to_one_process(tasks: list[int], world: int) -> None:
    step = tasks[1] - tasks[0] if len(tasks) > 1 else 1
    ranks = [
        joint_rank(array(task, tasks, step) | (torchrun(rank, world) if world > 1 else {}))
        for task in tasks
        for rank in range(world)
    ]
    assert [rank.index for rank in ranks] == list(range(len(tasks) * world))
    assert {rank.count for rank in ranks} == {len(tasks) * world}
    assert all(rank.source for rank in ranks)


def test_without_a_scheduler_there_is_one_part() -> None:
    assert joint_rank({}) == Rank(0, 1, "")
    assert joint_rank({"RANK": "3"}) == Rank(0, 1, "")  # of some other tool


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (array(3, [1, 3, 4]), "expected a job array without gaps, such as --array=0-2"),
        (array(5, [0, 1]), "expected a job array without gaps"),
        (torchrun(2, 2), "expected RANK below WORLD_SIZE, got RANK=2 WORLD_SIZE=2"),
        (torchrun(0, 0), "expected RANK below WORLD_SIZE"),
        (torchrun(0, 2) | {"RANK": "first"}, "expected a whole number in the variable RANK, got 'first'"),
        (array(0, [0, 1]) | {"SLURM_ARRAY_TASK_COUNT": "-2"}, "in the variable SLURM_ARRAY_TASK_COUNT, got '-2'"),
    ],
)
def test_variables_that_tell_no_part_are_refused(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError, match=r".*") as refusal:
        joint_rank(environment)
    assert sentence in str(refusal.value)
    assert "; " in str(refusal.value)
