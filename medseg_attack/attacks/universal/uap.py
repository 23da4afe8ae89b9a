"""One perturbation for every image, learned on the images of other patients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.judging import judge
from medseg_attack.attacks.learning import Learning
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.fields import stretched
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.goals.dissolved import Dissolve
from medseg_attack.threat.goals.toward import Toward
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Adversarial, Ball, Batch, Bindable, Image, Mask, Model, Objective, Setting

FITS = ("resize", "tile")


@register("uap", kind="attack", cost="1 forward, 0 backward", threat="white box, on other patients", reaches="its ball")
@dataclass(frozen=True)
class UAP(Learning, Bindable, Climbing):
    """One perturbation for all images, learned on the training patients (Moosavi-Dezfooli et al., arXiv 1610.08401).

    The paper adds up the least changes that fool a classifier on one image each. For segmentation, this takes a signed
    step along the gradient summed over a batch (stochastic gradient ascent), or over all images (`uap_metzen`). A
    targeted perturbation needs a targeted objective. Only the truth of the images that it is fitted on is used.

    Attributes:
        objective: function that the attack makes large, summed over the images of a step.
        epochs: passes over the images that it is fitted on, 1 or more.
        momentum: weight of the last direction in the next one, 0 or more; each step adds its gradient, divided by its
            mean magnitude.
        whole_epochs: True takes one step per pass, along the gradient of all images; False one per batch.
        grid: spatial shape of the perturbation in pixels; () takes the shape of most images that it is fitted on.
        onto: how it is put on another grid. "resize" stretches it linearly, so that no pixel grows; "tile" repeats it
            from the first pixel on and cuts it off.

    Raises:
        InputError: a field is out of range.
    """

    epochs: int = 5
    step_size: float = 0.1
    momentum: float = 0.9
    whole_epochs: bool = False
    grid: tuple[int, ...] = ()
    onto: str = "resize"

    def __post_init__(self) -> None:
        require(self, epochs=1, step_size=0, momentum=0, onto=FITS)
        if any(type(n) is not int or n < 1 for n in self.grid):
            raise InputError(f"expected grid=(rows, columns) of 1 or more, got {self.grid}; write such as grid=(8, 8)")

    def fit(self, model: Model, batches: Sequence[Batch], seed: int) -> dict[str, Tensor]:
        """The learned perturbation as `change` (1, c, *grid); `seed` draws the order of the batches in every epoch.

        Raises:
            InputError: there is no batch.
        """
        if not batches:
            raise InputError("expected images to fit uap on, got none; prepare data with patients to train on")
        first = batches[0].image
        change = first.new_zeros(1, first.shape[1], *(self.grid or usual_grid(batches)))
        direction = torch.zeros_like(change)
        rng = torch.Generator().manual_seed(seed)
        for epoch in range(self.epochs):
            total = torch.zeros_like(change)
            for index in torch.randperm(len(batches), generator=rng).tolist():
                total = total + self._gradient(model, batches[index], change, epoch / self.epochs)
                if not self.whole_epochs:
                    change, direction = self._step(change, direction, total)
                    total = torch.zeros_like(change)
            if self.whole_epochs:
                change, direction = self._step(change, direction, total)
        return {"change": change.detach()}

    def with_learned(self, learned: Mapping[str, Tensor]) -> "Universal":
        """The attack that adds a learned perturbation."""
        return Universal(self.ball, self.onto, learned["change"], self.objective)

    def _gradient(self, model: Model, batch: Batch, change: Tensor, progress: float) -> Tensor:
        """The gradient of the objective's sum by the change, through all tiles or pixels that it was put on."""
        change = change.detach().requires_grad_()
        on_grid = placed(change, tuple(batch.image.shape[2:]), self.onto)
        outer = self.setting or Setting(model.task)
        stream = f"fit {progress:.6f}"  # of a random model another draw in every epoch
        setting = Setting(model.task, batch.cases, outer.donors, stream, outer.backward)
        ball, objective = bind(self.ball, setting), bind(self.climbed(model), setting)
        x = ball.project(batch.image + on_grid, batch.image)
        loss = objective(bind(model, setting)(x), batch.target, progress).sum()
        return torch.autograd.grad(loss, change)[0]

    def _step(self, change: Tensor, direction: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The change after one signed step along the direction, and the direction with the gradient accumulated."""
        scale = grad.abs().mean()
        direction = self.momentum * direction + grad / torch.where(scale > 0, scale, torch.ones_like(scale))
        ball, middle = self.ball.unrestricted, torch.full_like(change, 0.5)  # a region is one of images
        return ball.clipped(change + self.step_size * ball.step(direction, middle)), direction


@dataclass(frozen=True, eq=False)
class Universal:
    """A learned perturbation that is added to every image and cut to the ball around it.

    Attributes:
        onto: "resize" or "tile", how it is put on another grid.
        change: the perturbation (1, c, *t).
        objective: the objective that it was learned with; its goal, if any, decides what counts as success.
    """

    ball: Ball
    onto: str
    change: Tensor
    objective: Objective

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        change = placed(self.change.to(image), tuple(image.shape[2:]), self.onto)
        return judge(model, self.ball, self.ball.project(image + change, image), image, target)


@register(
    "uap_metzen",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="white box, on other patients",
    reaches="its ball",
    shown_by="uap_metzen(epochs=4)",
)
def uap_metzen(ball: Ball = Linf(10 / 255), objective: Objective = bce, epochs: int = 60) -> UAP:
    """One periodic perturbation for all images, learned on the training patients (Metzen et al., arXiv 1704.05712).

    It is one tile, repeated. Each of `epochs` passes over the training images takes one signed step of a tenth of the
    ball, along the gradient of all images.
    """
    return UAP(ball, objective, epochs, step_size=0.1, momentum=0.0, whole_epochs=True, onto="tile")


@register(
    "uap_metzen_dynamic",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="white box, on other patients",
    paper="Metzen et al., arXiv 1704.05712 (dynamic target)",
    reaches="its ball",
    shown_by="uap_metzen_dynamic(epochs=4)",
)
def uap_metzen_dynamic(ball: Ball = Linf(10 / 255), organ: str = "", epochs: int = 60) -> UAP:
    """`uap_metzen` with a target of each image's own: an organ hidden, its neighbours in its place (arXiv 1704.05712).

    It climbs `toward(bce, dissolve(organ))`. The paper makes the target of the model's clean answer, this of the truth.
    The paper weighs the hidden organ's pixels by 0.9999 and the rest by 0.0001, and leaves out entries that are sure
    to be as wanted; here all entries count alike.

    Args:
        organ: name of the organ that is hidden; "" is the first of the task.
        epochs: passes over the images that it is fitted on, 1 or more, each with one step.
    """
    return uap_metzen(ball, Toward(bce, Dissolve(organ)), epochs)


def placed(change: Tensor, grid: tuple[int, ...], onto: str) -> Tensor:
    """The perturbation (1, c, *t) on another grid, (1, c, *grid), stretched or tiled.

    Raises:
        InputError: the grids have different numbers of axes.
    """
    if len(grid) != change.ndim - 2:
        raise InputError(f"expected images of {change.ndim - 2} axes, as uap was fitted on, got {len(grid)}; fit again")
    if onto == "tile":
        times = [math.ceil(n / m) for n, m in zip(grid, change.shape[2:], strict=True)]
        return change.repeat(1, 1, *times)[(slice(None), slice(None), *map(slice, grid))]
    return stretched(change, grid)


def usual_grid(batches: Sequence[Batch]) -> tuple[int, ...]:
    """The spatial shape of most images; between equals the smaller."""
    counts: dict[tuple[int, ...], int] = {}
    for batch in batches:
        grid = tuple(batch.image.shape[2:])
        counts[grid] = counts.get(grid, 0) + len(batch.image)
    return min(counts, key=lambda grid: (-counts[grid], grid))
