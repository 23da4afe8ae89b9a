"""A task in JSON is the same task again; of two results each sample has the worse, which is copied only to be mixed."""

import json

import pytest
import torch

from medseg_attack.types import Adversarial, Task


@pytest.mark.parametrize(
    "task",
    [
        Task("organs", ("liver", "spleen")),
        Task("heart", ("background", "rv"), exclusive=True, channels=2, channel_names=("T1", "T2")),
    ],
)
def test_a_task_read_from_its_own_json_is_the_same(task: Task) -> None:
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_channels_that_nobody_named_are_not_written() -> None:
    assert Task("organs", ("liver",)).to_json() == {
        "name": "organs",
        "classes": ["liver"],
        "exclusive": False,
        "channels": 1,
    }


@pytest.mark.parametrize("absent", ["name", "classes", "exclusive", "channels"])
def test_a_task_without_a_field_is_refused_by_its_name(absent: str) -> None:
    fields = {name: value for name, value in Task("organs", ("liver",)).to_json().items() if name != absent}
    with pytest.raises(KeyError, match=absent):
        Task.from_json(fields)


def test_the_worse_of_two_results_is_copied_only_where_samples_come_from_both() -> None:
    first = Adversarial(torch.zeros(2, 1, 2, 2), torch.tensor([0.1, 0.5]), torch.zeros(2))
    other = Adversarial(torch.ones(2, 1, 2, 2), torch.tensor([0.2, 0.6]), torch.zeros(2))
    mixed = Adversarial(torch.ones(2, 1, 2, 2), torch.tensor([0.2, 0.4]), torch.zeros(2))
    assert (first | other).image is other.image
    assert (other | first).image is other.image
    assert (first | mixed).image.flatten(1).tolist() == [[1.0] * 4, [0.0] * 4]
