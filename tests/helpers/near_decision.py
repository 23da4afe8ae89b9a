"""Images whose every pixel is close to the linear model's decision, for attacks that look for the least change."""

import math

import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.types import Adversarial, Attack, Model, Task

ORGAN = Task("oracle", ("organ",))


EXCLUSIVE = Task("oracle", ("background", "organ", "never"), exclusive=True)


SEEDS = [1, 2, 3]


def oracle(task: Task) -> Model:
    model: Model = registry.build("oracle", "model")(task).double().eval()
    return model


def images(spread: float = 0.02) -> Tensor:
    """Every pixel within `spread` of the decision."""
    generator = torch.Generator().manual_seed(0)
    return 0.5 + spread * (2 * torch.rand(3, 1, 24, 20, generator=generator, dtype=torch.float64) - 1)


def nearest(image: Tensor, share: float = 0.99) -> Tensor:
    """Distances from the decision of the pixels that must flip, rising."""
    distances = (image - 0.5).abs().flatten(1).sort(1).values
    return distances[:, : math.ceil(share * distances.shape[1])]


def attacked(attack: Attack, task: Task, image: Tensor) -> tuple[Adversarial, Tensor]:
    """What it finds, and the share of pixels that flipped."""
    model = oracle(task)
    truth = model.decide(model(image))
    result = attack(model, image, truth, SEEDS)
    flipped = model.decide(model(result.image)) != truth
    return result, flipped[:, 1 if task.exclusive else 0].flatten(1).double().mean(1)
