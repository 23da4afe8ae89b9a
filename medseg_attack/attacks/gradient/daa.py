"""The distributionally adversarial attack (DAA): several PGD runs on one image, coupled by a kernel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing, visit
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import require
from medseg_attack.numerics.samples import TINY, reseeded, scaled
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, Image, Mask, Model

Particles = Float[Tensor, "m b c *s"]


@register(
    "daa",
    kind="attack",
    cost="particles * (steps + 1) + 1 forward, particles * steps backward",
    reaches="all in eps",
    shown_by="daa(steps=9)",
)
@dataclass(frozen=True)
class DAA(Climbing):
    """Several PGD runs that a kernel keeps apart; the worst iterate of all of them (Zheng et al., arXiv 1808.05537).

    This is the paper's BLOB form. The paper couples different images of a batch, so that a case's number depends on
    its neighbours. Here the particles are runs on one image from different starts in the ball. Gradients and kernel
    term are each divided by their mean magnitude, without which the term vanishes on images of this size.

    Attributes:
        particles: number of runs, 2 or more.
        coupling: weight of the kernel term (c of the paper), without unit, 0 or more; 0 is PGD with as many restarts.

    Raises:
        InputError: a field is out of range.
    """

    steps: int = 20
    step_size: float = 0.25
    particles: int = 4
    coupling: float = 1.1

    def __post_init__(self) -> None:
        require(self, steps=1, step_size=0, particles=2, coupling=0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        worst = judge(model, self.ball, image, image, target)
        starts = [self.ball.sample(image, reseeded(seeds, run) if run else seeds) for run in range(self.particles)]
        particles = torch.stack(starts)
        objective = self.climbed(model)
        for step in range(self.steps):
            visits = [visit(model, self.ball, objective, x, image, target, step / self.steps) for x in particles]
            worst = reduce(or_, (judged for judged, *_ in visits), worst)
            directions = coupled(particles, torch.stack([scaled(grad) for *_, grad in visits]), self.coupling)
            steps = [
                self.ball.project(x + self.step_size * self.ball.step(direction, x), image)
                for x, direction in zip(particles, directions, strict=True)
            ]
            particles = torch.stack(steps)
        return reduce(or_, (judge(model, self.ball, x, image, target) for x in particles), worst)


def coupled(particles: Particles, grads: Particles, coupling: float) -> Particles:
    """Each particle's gradient plus `coupling / m` times the kernel's sum of gradients less its push apart.

    The kernel is Gaussian with the width of the paper, h^2 = median |x_i - x_j|^2 / (2 log m), per sample.
    """
    m = len(particles)
    theta = particles.flatten(2)
    distance = (theta[:, None] - theta[None]).square().sum(3)  # (m, m, b)
    width = distance.flatten(0, 1).median(0).values / (2 * math.log(m)) + TINY
    kernel = torch.exp(-distance / (2 * width))
    repulsion = theta * kernel.sum(1)[..., None] - torch.einsum("ijb,jbn->ibn", kernel, theta)
    repulsion = torch.stack([scaled(particle) for particle in repulsion.view_as(grads)])
    attraction = torch.einsum("ijb,jbn->ibn", kernel, grads.flatten(2)).view_as(grads)
    return grads + coupling / m * (attraction - repulsion)
