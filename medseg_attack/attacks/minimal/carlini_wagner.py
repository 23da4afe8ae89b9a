"""C&W: the least square of a change plus a price on entries that are not adversarial."""

from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.minimal.search import MinimalAttack, Search, check
from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import gradient_of, widen
from medseg_attack.registry import About, register
from medseg_attack.threat.balls.norms import L2
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByPixels, Criterion
from medseg_attack.types import Adversarial, Ball, PerSample

WIDEST = L2(20.0)


def _next(price: PerSample, low: PerSample, high: PerSample, reached: Tensor) -> tuple[PerSample, PerSample, PerSample]:
    """The price of an entry to try next, between the largest that failed and the least that succeeded."""
    low, high = torch.where(reached, low, price), torch.where(reached, price, high)
    return torch.where(high.isinf(), 10 * price, (low + high) / 2), low, high


@register("cw", kind="attack", about=About(norm="least l2"))
@dataclass(frozen=True)
class CarliniWagner(MinimalAttack):
    """Least squares plus a price on entries that are not adversarial (Carlini & Wagner, S&P 2017, arXiv 1608.04644).

    The price is searched for each case by itself, by bisection. Adam works on the image and is cut to [0, 1]: the
    paper's tanh would freeze pixels that are exactly 0 or 1, of which the air around a patient is made.

    Attributes:
        searches: prices tried, each with `steps` steps from the image itself.
        kappa: margin in log-odds that entries are pushed beyond the boundary.
    """

    ball: Ball = WIDEST
    goal: Goal | None = None
    success: Criterion = ByPixels()
    steps: int = 100
    searches: int = 9
    step_size: float = 0.01
    price: float = 0.001
    kappa: float = 0.0

    def __post_init__(self) -> None:
        check(self, "l2")
        if self.searches < 1:
            raise InputError(f"expected searches >= 1, got {self.searches}; check the attack")

    def search(self, search: Search) -> tuple[Adversarial, None]:
        best = search.seen(search.image, search.model(search.image))
        price = torch.full_like(best.size, self.price)
        low, high = torch.zeros_like(price), torch.full_like(price, torch.inf)
        for _ in range(self.searches):
            tried = self._descend(search, price)
            best |= tried
            price, low, high = _next(price, low, high, tried.harm >= 1)
        return best, None

    def _descend(self, search: Search, price: PerSample) -> Adversarial:
        """The best of one descent at these prices."""
        x, first, second = search.image, torch.zeros_like(search.image), torch.zeros_like(search.image)
        seen = []
        for step in range(self.steps):
            here, log_odds = search.look(x)
            seen.append(search.seen(here, log_odds))
            lack = functional.relu(self.kappa - search.excess(log_odds))
            grad = 2 * (x - search.image) + widen(price, x) * gradient_of(lack, here)
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad.square()
            metric = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            x = (x - self.step_size / (1 - 0.9 ** (step + 1)) * first / metric).clamp(0, 1)
            seen = [reduce(or_, seen)]
        return seen[0] | search.seen(x, search.model(x))
