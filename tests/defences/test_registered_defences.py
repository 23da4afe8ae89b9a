"""What every registered defence must keep, so that a new file is tested by existing."""

import json

import pytest
import torch
from helpers.command import medattack
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry.declared import cited
from medseg_attack.training.losses import training_loss
from medseg_attack.types import Task

NAMES = registry.names("defence")
TRAINING = [name for name in NAMES if issubclass(registry.find(name).make, TrainingDefence)]  # type: ignore[arg-type]
EXCLUSIVE_ALONE = {"guided_complement"}
OVERLAPPING, EXCLUSIVE = Task("contract", ("a", "b")), Task("contract", ("background", "a", "b"), exclusive=True)


def scene(name: str, task: Task, dims: int) -> tuple[Step, Tensor, Tensor]:
    """A batch of a small network that has a batch norm."""
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    grid, k = (12, 10, 6)[:dims], len(task.classes)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = nn.Sequential(conv(1, 6, 3, padding=1), norm(6), nn.ReLU(), conv(6, k, 3, padding=1))
        image = torch.rand(3, 1, *grid)
        labels = torch.randint(0, k, (3, *grid))
    target = torch.stack([labels == i for i in range(k)], 1).float()
    model = SegModel(net, task, dims=dims).train()
    defence: TrainingDefence = registry.build(name, "defence")
    defence.prepare(model)
    criterion, chain = training_loss("dice_focal", task), ((defence, {}),)
    step = Step(model, criterion, (11, 12, 13), 0.5, chain=chain, places=(0, 4, 2), unlabelled=lambda: 1 - image)
    return step, image, target


@pytest.mark.parametrize("name", NAMES)
def test_a_defence_says_who_published_it_what_it_costs_and_what_attacks_it(name: str) -> None:
    entry = registry.find(name)
    assert (entry.paper or cited(entry.doc)) != "-"
    assert "forward" in entry.cost
    registry.build(entry.attacked_with, "attack")
    assert registry.build(registry.spec(registry.build(name, "defence")), "defence") == registry.build(name, "defence")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("task", [OVERLAPPING, EXCLUSIVE], ids=["overlapping", "exclusive"])
@pytest.mark.parametrize("name", TRAINING)
def test_the_loss_of_a_batch_is_a_number_with_a_gradient_and_the_same_twice(name: str, task: Task, dims: int) -> None:
    if name in EXCLUSIVE_ALONE and not task.exclusive:
        with pytest.raises(InputError, match="that exclude each other"):
            scene(name, task, dims)
        return
    values = []
    for _ in range(2):
        step, image, target = scene(name, task, dims)
        before = image.clone(), target.clone()
        rng = torch.random.get_rng_state()
        loss = step.loss(image, target)
        loss.backward()  # type: ignore[no-untyped-call]
        assert torch.isfinite(loss)
        assert loss.ndim == 0
        assert all(weight.grad is not None for weight in step.model.parameters())
        assert step.model.training
        assert torch.equal(image, before[0])
        assert torch.equal(target, before[1])
        assert torch.equal(rng, torch.random.get_rng_state())
        values.append([loss.detach(), *(weight.grad for weight in step.model.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*values, strict=True))  # type: ignore[arg-type]


def test_defences_are_listed_with_what_they_cost_and_what_attacks_them() -> None:
    rows = {row["name"]: row for row in json.loads(medattack("ls", "defences", "--explain", "--json").stdout)}
    assert list(rows) == NAMES
    assert rows["gaussian"]["paper"] == "Zantedeschi et al., arXiv 1707.06728"
    assert rows["gaussian"]["options"] == "sigma=0.1"
    text = " ".join(medattack("ls", "defences", "--explain").stdout.split())
    assert "passes 1 forward, 1 backward; attacked with strongest" in text
