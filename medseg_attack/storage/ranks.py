"""The place of this process among those that a cluster's scheduler started with it, as their environment tells."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from medseg_attack.errors import InputError


@dataclass(frozen=True)
class Rank:
    """The place of a process among several that do one piece of work.

    Attributes:
        index: counted from 0.
        count: number of processes.
        source: the variables that say so, with their values; "" without any.
    """

    index: int = 0
    count: int = 1
    source: str = ""


def process_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank that torchrun gave to this process; the only one of 1 without torchrun.

    Raises:
        InputError: RANK and WORLD_SIZE are no rank.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Rank()
    index, count = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    source = f"RANK={index} WORLD_SIZE={count}"
    if index >= count:
        raise InputError(f"expected RANK below WORLD_SIZE, got {source}; unset both, or start it with torchrun")
    return Rank(index, count, source)


def array_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """The place of this task in its SLURM job array, from SLURM_ARRAY_TASK_*; the only one of 1 outside of an array.

    Raises:
        InputError: the array has gaps, so that nothing tells which task is which part.
    """
    if "SLURM_ARRAY_TASK_ID" not in environment or "SLURM_ARRAY_TASK_COUNT" not in environment:
        return Rank()
    task, count = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
    step = max(_number(environment, "SLURM_ARRAY_TASK_STEP", 1), 1)
    last = _number(environment, "SLURM_ARRAY_TASK_MAX", first + step * (count - 1))
    source = f"SLURM_ARRAY_TASK_ID={task}"
    if last - first != step * (count - 1) or (task - first) % step or not first <= task <= last:
        raise InputError(
            f"expected a job array without gaps, such as --array=0-{count - 1}, got {source} of {count} tasks from "
            f"{first} to {last}; give --shard k/N"
        )
    return Rank((task - first) // step, count, source)


def joint_rank(environment: Mapping[str, str] = os.environ) -> Rank:
    """The place of this process among all processes of all tasks of a job array.

    Raises:
        InputError: a variable is no number, or the array has gaps.

    >>> joint_rank({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "RANK": "1", "WORLD_SIZE": "2"}).index
    7
    """
    task, process = array_rank(environment), process_rank(environment)
    source = " ".join(filter(None, (task.source, process.source)))
    return Rank(task.index * process.count + process.index, task.count * process.count, source)


def local_index(environment: Mapping[str, str] = os.environ) -> int:
    """The number of this process among those of its machine, which torchrun tells as LOCAL_RANK; 0 without it."""
    return _number(environment, "LOCAL_RANK", 0)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A variable's whole number."""
    text = environment.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"expected a whole number in the variable {name}, got {text!r}; unset it, or give --shard k/N")
    return int(text)
