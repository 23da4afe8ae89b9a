"""L-BFGS: the least square of a change plus a price on cross-entropy, within [0, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.minimal.priced import WIDEST, Priced
from medseg_attack.attacks.minimal.search import Search
from medseg_attack.numerics.samples import TINY, gradient_of, widen
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, Ball, Image, PerSample

MEMORY = 10  # pairs of steps and slopes
Flat = Float[Tensor, "b n"]


# cross-entropy goes on beyond the boundary
@register(
    "lbfgs",
    kind="attack",
    cost="searches * steps + 2 forward, searches * steps backward",
    norm="least l2",
    reaches="within 1.4 of the least",
    shown_by="lbfgs(l2(100), searches=8)",
)
@dataclass(frozen=True)
class Lbfgs(Priced):
    """Least change in L2, by a price on cross-entropy and L-BFGS within [0, 1] (Szegedy et al., arXiv 1312.6199).

    All cases of a batch at once, each with its own memory, step length and price; scipy's optimiser takes one at a
    time. Cross-entropy is that of the wanted side of each entry against the strongest other, mean over entries: away
    from the truth it is bounded, where minus the truth's own is not.

    Attributes:
        steps: evaluations of the model for each price.
        searches: prices that are tried for each case, at least 1.
        price: the first, above 0; the next is ten times that after a failure.
    """

    ball: Ball = WIDEST
    steps: int = 50
    searches: int = 6
    price: float = 10.0

    def descend(self, search: Search, price: PerSample) -> Adversarial:
        """The best image that projected L-BFGS visits at these prices, in `steps` evaluations, by Armijo's rule."""

        def evaluate(x: Image) -> tuple[PerSample, Flat, Adversarial]:
            leaf, log_odds = search.look(x)
            entries = functional.softplus(-search.excess(log_odds)).flatten(1).mean(1)
            value = (leaf - search.image).square().flatten(1).sum(1) + price * entries
            return value.detach(), gradient_of(value, leaf).flatten(1), search.candidate(leaf, log_odds)

        x = search.image
        value, grad, best = evaluate(x)
        pairs: list[tuple[Flat, Flat]] = []
        unit = 1 / (grad.norm(dim=1) + TINY)  # the first step has length 1
        stride = torch.ones_like(value)
        for _ in range(self.steps - 1):
            flat = x.flatten(1)
            free = ~(((flat <= 0) & (grad > 0)) | ((flat >= 1) & (grad < 0)))
            direction = _newton(grad * free, pairs, unit) * free
            direction = torch.where(((direction * grad).sum(1) > 0)[:, None], direction, unit[:, None] * grad * free)
            trial = (x - (stride[:, None] * direction).view_as(x)).clamp(0, 1)
            new_value, new_grad, candidate = evaluate(trial)
            best |= candidate
            moved = (trial - x).flatten(1)
            taken = new_value <= value + 1e-4 * (grad * moved).sum(1)
            grad_change = torch.where(taken[:, None], new_grad - grad, 0.0)
            moved = torch.where(taken[:, None], moved, 0.0)
            curved = (moved * grad_change).sum(1)
            unit = torch.where(curved > TINY, curved / (grad_change.square().sum(1) + TINY), unit)
            kept = (curved > TINY)[:, None]
            pairs = [*pairs[1 - MEMORY :], (moved * kept, grad_change * kept)]
            x = torch.where(widen(taken, x), trial, x)
            value, grad = torch.where(taken, new_value, value), torch.where(taken[:, None], new_grad, grad)
            stride = torch.where(taken, 1.0, stride / 4)
        return best


def _newton(grad: Flat, pairs: Sequence[tuple[Flat, Flat]], unit: PerSample) -> Flat:
    """The inverse Hessian of the pairs times the gradient, by the two-loop recursion; a pair of zeros is none."""

    def times(a: Flat, b: Flat) -> Float[Tensor, "b 1"]:
        return (a * b).sum(1, keepdim=True)

    shares = []
    for moved, grad_change in reversed(pairs):
        share = times(moved, grad) / (times(moved, grad_change) + TINY)
        shares.append(share)
        grad = grad - share * grad_change
    grad = unit[:, None] * grad
    for (moved, grad_change), share in zip(pairs, reversed(shares), strict=True):
        grad = grad + moved * (share - times(grad_change, grad) / (times(moved, grad_change) + TINY))
    return grad
