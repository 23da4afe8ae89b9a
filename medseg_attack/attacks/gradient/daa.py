"""The distributionally adversarial attack: several runs that feel each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import require
from medseg_attack.numerics.samples import TINY, reseeded, scaled
from medseg_attack.registry import About, register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, Objective

Particles = Float[Tensor, "m b c *s"]


@register("daa", kind="attack", about=About(reaches="all in eps", shown_by="daa(steps=9)"))
@dataclass(frozen=True)
class DAA:
    """PGD runs coupled by a kernel, in the BLOB form (Zheng et al., arXiv 1808.05537); each sample's worst iterate.

    The paper couples different images of a batch, so that a case's number depends on its neighbours. Here the
    particles are runs on one image from different starts of the ball. Gradients and kernel term are each divided by
    their mean magnitude, without which the term vanishes on images of this size.

    Attributes:
        particles: how many runs.
        coupling: weight of what the others do (c of the paper); 0 is PGD with as many restarts.
    """

    ball: Ball = Linf()
    objective: Objective = bce
    steps: int = 20
    step_size: float = 0.25
    particles: int = 4
    coupling: float = 1.1

    def __post_init__(self) -> None:
        require(self, steps=1, step_size=0, particles=2)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        best = judge(model, self.ball, image, image, target)
        starts = [self.ball.sample(image, reseeded(seeds, run) if run else seeds) for run in range(self.particles)]
        particles = torch.stack(starts)
        for step in range(self.steps):
            looks = [self._look(model, x, image, target, step / self.steps) for x in particles]
            best = reduce(or_, (seen for _, seen in looks), best)
            directions = coupled(particles, torch.stack([grad for grad, _ in looks]), self.coupling)
            moved = [
                self.ball.project(x + self.step_size * self.ball.step(direction, x), image)
                for x, direction in zip(particles, directions, strict=True)
            ]
            particles = torch.stack(moved)
        return reduce(or_, (judge(model, self.ball, x, image, target) for x in particles), best)

    def _look(self, model: Model, x: Image, image: Image, target: Mask, progress: float) -> tuple[Image, Adversarial]:
        x = x.detach().requires_grad_()
        log_odds = model(x)
        (grad,) = torch.autograd.grad(for_task(self.objective, model.task)(log_odds, target, progress).sum(), x)
        return scaled(grad), judge_prediction(model, self.ball, x, image, model.decide(log_odds.detach()), target)


def coupled(particles: Particles, grads: Particles, coupling: float) -> Particles:
    """Each particle's gradient plus `coupling / m` of what the kernel makes of the others' gradients and places.

    The kernel's width is that of the paper, h^2 = median |x_i - x_j|^2 / (2 log m), per sample.
    """
    m = len(particles)
    theta = particles.flatten(2)
    apart = (theta[:, None] - theta[None]).square().sum(3)  # (m, m, b)
    width = apart.flatten(0, 1).median(0).values / (2 * math.log(m)) + TINY
    kernel = torch.exp(-apart / (2 * width))
    places = theta * kernel.sum(1)[..., None] - torch.einsum("ijb,jbn->ibn", kernel, theta)
    others = torch.einsum("ijb,jbn->ibn", kernel, grads.flatten(2)).view_as(grads)
    away = torch.stack([scaled(one) for one in places.view_as(grads)])
    return grads + coupling / m * (others - away)
