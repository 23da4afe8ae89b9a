"""DeepFool: steps to the boundary that is nearest if the model is linear."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.minimal.dag import WIDEST
from medseg_attack.attacks.minimal.search import MinimalAttack, Moved, Search, walk
from medseg_attack.errors import require
from medseg_attack.numerics.samples import TINY, length, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, PerSample

NUDGE = 1e-4  # of the norm, as in the released code: a step that [0, 1] cuts would creep up to the boundary for ever


@register(
    "deepfool",
    kind="attack",
    cost="up to steps + 2 forward, steps backward",
    reaches="within 1.03 of the least",
    shown_by="deepfool(linf(0.5))",
)
@dataclass(frozen=True)
class DeepFool(MinimalAttack):
    """Steps to the nearest boundary of a model taken as linear (DeepFool; Moosavi-Dezfooli et al., arXiv 1511.04599).

    Algorithm 2, adapted by us to dense outputs: the entries that are not adversarial yet add up to one function, whose
    zero is stepped to. On a single linear entry one step ends at the boundary; on several, small margins are overshot
    while the large ones take more steps. Where classes exclude each other and there is no goal, there is such a
    function per class, the sum of log p_class - log p_truth over those pixels; each sample takes the one that is zero
    at the least distance, for a backward pass each. Those whose truth is that class wait for another step: so organs
    fall before their surroundings.

    Attributes:
        ball: l2 steps along the gradient, linf along its signs.
        overshoot: share of its length by which each step is longer, 0 or more.

    Raises:
        InputError: the ball is of another norm; `steps` or `overshoot` is out of range.
    """

    norms = ("linf", "l2")

    ball: Ball = WIDEST
    steps: int = 50
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, overshoot=0)

    def search(self, search: Search) -> Adversarial:
        def move(x: Image, log_odds: LogOdds) -> Moved:
            nearest, direction = torch.full_like(x.detach().flatten(1)[:, 0], torch.inf), torch.zeros_like(x)
            backwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            for missing, unmet in _boundaries(search, log_odds):
                if not unmet.any():
                    continue
                backwards += unmet
                (grad,) = torch.autograd.grad(missing.sum(), x, retain_graph=True)
                distance, along = _linear(-missing.detach().flatten(1).sum(1), grad, search.ball)
                nearer = unmet & (distance < nearest)
                nearest = torch.where(nearer, distance, nearest)
                direction = torch.where(widen(nearer, along), along, direction)
            to_boundary = torch.where(nearest.isfinite(), nearest + NUDGE, 0.0)
            return x + (1 + self.overshoot) * widen(to_boundary, x) * direction, backwards

        return walk(search, self.steps, move)


def _boundaries(search: Search, log_odds: LogOdds) -> Iterator[tuple[Float[Tensor, "b n *s"], Bool[Tensor, "b"]]]:
    """The distance (<= 0) by which entries miss each boundary, and which samples have entries that miss it."""
    excess = search.excess(log_odds)
    active = excess.detach() <= 0
    if search.aim.goal is not None or not search.aim.task.exclusive:
        yield torch.where(active, excess, 0.0), active.flatten(1).any(1)
        return
    log_p = functional.logsigmoid(log_odds)
    own = torch.where(search.target, log_p, 0.0).sum(1, keepdim=True)
    for k in range(log_p.shape[1]):
        other = active & ~search.target[:, k : k + 1]
        yield torch.where(other, log_p[:, k : k + 1] - own, 0.0), other.flatten(1).any(1)


def _linear(lack: PerSample, grad: Image, ball: Ball) -> tuple[PerSample, Image]:
    """The distance at which a linear function that lacks so much is zero, and the direction, of size 1 in the norm."""
    if isinstance(ball, Linf):
        return lack / (grad.abs().flatten(1).sum(1) + TINY), grad.sign()
    return lack / (length(grad) + TINY), grad / (widen(length(grad), grad) + TINY)
