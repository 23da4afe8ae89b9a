"""Images and the linear model on them whose worst case can be written down."""

import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.types import Attack, Model, Task

ORGAN = Task("oracle", ("organ",))


EXCLUSIVE = Task("oracle", ("background", "organ", "never"), exclusive=True)


SHAPE = (24, 20)


EPS = 0.03


def oracle(task: Task, name: str = "oracle") -> Model:
    model: Model = registry.build(name, "model")(task).double().eval()
    return model


def images(spread: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.5 + spread * (2 * torch.rand(3, 1, *SHAPE, generator=generator, dtype=torch.float64) - 1)


def truth(model: Model, image: Tensor) -> Tensor:
    return model.decide(model(image))


def flipped(model: Model, attack: Attack, image: Tensor) -> Tensor:
    target = truth(model, image)
    result = attack(model, image, target, [1, 2, 3])
    return model.decide(model(result.image)) != target


GREY = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
