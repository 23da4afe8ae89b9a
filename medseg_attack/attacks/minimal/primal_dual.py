"""PDGD and PDPGD: primal-dual (proximal) gradient descent."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.minimal.alma_prox import prox_linf
from medseg_attack.attacks.minimal.dag import WIDEST
from medseg_attack.attacks.minimal.search import MinimalAttack, Search
from medseg_attack.errors import require
from medseg_attack.numerics.samples import TINY, gradient_of, length, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByPixels, Criterion
from medseg_attack.types import Adversarial, Ball


@register(
    "pdpgd",
    kind="attack",
    cost="steps + 3 forward, steps backward",
    reaches="within 1.02 of the least",
    shown_by="pdpgd(linf(0.5))",
)
@dataclass(frozen=True)
class PrimalDual(MinimalAttack):
    """Least change by descent on norm and constraints whose weights climb (PDPGD; Matyasko & Chau, arXiv 2106.01538).

    Every entry is a constraint, as in adv_lib: weights are a softmax with one place for the norm. In linf the norm
    enters through its proximal operator, solved exactly instead of in five rounds; in l2 through its gradient.

    Attributes:
        ball: linf (PDPGD) or l2 (PDGD).
        step_size: learning rate of Adam on intensities in [0, 1], absolute, above 0; it falls to a hundredth.
        dual_step_size: step of the logarithms of the weights, above 0; it falls to a tenth.

    Raises:
        InputError: a step is not above 0.
    """

    norms = ("linf", "l2")

    ball: Ball = WIDEST
    steps: int = 500
    step_size: float = 0.1
    dual_step_size: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, step_size="(0, inf)", dual_step_size="(0, inf)")

    def search(self, search: Search) -> Adversarial:
        image, in_linf = search.image, isinstance(search.ball, Linf)
        change, first, second = (torch.zeros_like(image) for _ in range(3))
        best = search.candidate(image, search.model(image))
        duals: Tensor | None = None
        shares = torch.zeros_like(image)
        bound = math.log(1e12 if in_linf else 1e6)
        for step in range(self.steps):
            x, log_odds = search.look(image + change)
            best |= search.candidate(x, log_odds)
            lack = -search.excess(log_odds)
            if duals is None:
                duals = torch.full_like(lack, -math.log(lack[0].numel())).detach()
                shares = _shares(duals)
            else:
                shares = 0.9 * shares + 0.1 * _shares(duals)
            norm_share = 1 - shares.flatten(1).sum(1)
            grad = gradient_of(shares * functional.softplus(lack), x)
            if not in_linf:
                grad = grad + widen(norm_share / (length(change) + TINY), grad) * change
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad.square()
            metric = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            rate = self.step_size * 0.01 ** (step / self.steps)
            moved = change - rate / (1 - 0.9 ** (step + 1)) * first / metric
            change = (image + moved).clamp(0, 1) - image
            if in_linf:
                change = prox_linf(change, rate * norm_share / (1 - norm_share), metric, image)
            climb = self.dual_step_size * (1 - 0.9 * step / max(self.steps - 1, 1))
            duals = (duals + climb * lack.detach().sign()).clamp(-bound, bound)
        last = image + change
        return best | search.candidate(last, search.model(last))


def _shares(duals: Float[Tensor, "b n *s"]) -> Float[Tensor, "b n *s"]:
    """Weights of a case's entries: the softmax over them and one more place, the norm's, whose logit is 0."""
    flat = functional.pad(duals.flatten(1), (1, 0))
    return flat.softmax(1)[:, 1:].view_as(duals)


@register(
    "pdgd",
    kind="attack",
    cost="steps + 3 forward, steps backward",
    norm="least l2",
    reaches="within 1.5 of the least",
    shown_by="pdgd(l2(100))",
)
def pdgd(
    ball: Ball = L2(20.0), goal: Goal | None = None, success: Criterion = ByPixels(), steps: int = 500
) -> PrimalDual:
    """Least change in L2 by primal-dual descent: PDPGD without a proximal step (Matyasko & Chau, arXiv 2106.01538)."""
    return PrimalDual(ball, goal, success, steps)
