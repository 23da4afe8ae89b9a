"""Attacks that pay a price for entries that are not adversarial; bisection finds the price, case by case."""

from abc import abstractmethod

import torch

from medseg_attack.attacks.minimal.search import MinimalAttack, Search
from medseg_attack.errors import require
from medseg_attack.threat.balls.norms import L2
from medseg_attack.types import Adversarial, PerSample

WIDEST = L2(20.0)


class Priced(MinimalAttack):
    """Least squares plus a price: `searches` descents, the first at `price`, ten times that after each failure.

    After a success the price lies half-way between the largest that failed and the least that succeeded.
    """

    norms = ("l2",)

    searches: int
    price: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, searches=1, price="(0, inf)")

    @abstractmethod
    def descend(self, search: Search, price: PerSample) -> Adversarial:
        """The best image of one descent of each sample at its price."""

    def search(self, search: Search) -> Adversarial:
        best = search.candidate(search.image, search.model(search.image))
        price = torch.full_like(best.size, self.price)
        low, high = torch.zeros_like(price), torch.full_like(price, torch.inf)
        for _ in range(self.searches):
            attempt = self.descend(search, price)
            best |= attempt
            reached = attempt.harm >= 1
            low, high = torch.where(reached, low, price), torch.where(reached, price, high)
            # between the largest that failed and the least that succeeded
            price = torch.where(high.isinf(), 10 * price, (low + high) / 2)
        return best
