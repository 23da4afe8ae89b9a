"""C&W: the least square of a change plus a price on entries that are not adversarial."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from medseg_attack.attacks.minimal.priced import WIDEST, Priced
from medseg_attack.attacks.minimal.search import Search
from medseg_attack.errors import require
from medseg_attack.numerics.samples import gradient_of, widen
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, Ball, PerSample


@register(
    "cw",
    kind="attack",
    cost="searches * (steps + 1) + 2 forward, searches * steps backward",
    norm="least l2",
    reaches="within 1.1 of the least",
    shown_by="cw(l2(100), steps=100, searches=6, step_size=0.004)",
)
@dataclass(frozen=True)
class CarliniWagner(Priced):
    """Least change in L2, by a price on entries that are not adversarial (C&W; Carlini & Wagner, arXiv 1608.04644).

    The price is searched for each case by itself, by bisection. Adam works on the image and is cut to [0, 1]: the
    paper's tanh would freeze pixels that are exactly 0 or 1, of which the air around a patient is made.

    Attributes:
        steps: of Adam for each price, from the image itself.
        searches: prices that are tried for each case, at least 1.
        step_size: learning rate of Adam on intensities in [0, 1], absolute, above 0.
        price: the first, above 0; the next is ten times that after a failure.
        kappa: margin, in log-odds, that entries are pushed beyond the boundary, 0 or more.

    Raises:
        InputError: a field is out of range.
    """

    ball: Ball = WIDEST
    steps: int = 100
    searches: int = 9
    step_size: float = 0.01
    price: float = 0.001
    kappa: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, step_size="(0, inf)", kappa=0)

    def descend(self, search: Search, price: PerSample) -> Adversarial:
        x, first, second = search.image, torch.zeros_like(search.image), torch.zeros_like(search.image)
        best: Adversarial | None = None
        for step in range(self.steps):
            leaf, log_odds = search.look(x)
            candidate = search.candidate(leaf, log_odds)
            best = candidate if best is None else best | candidate
            lack = functional.relu(self.kappa - search.excess(log_odds))
            grad = 2 * (x - search.image) + widen(price, x) * gradient_of(lack, leaf)
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad.square()
            metric = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            x = (x - self.step_size / (1 - 0.9 ** (step + 1)) * first / metric).clamp(0, 1)
        last = search.candidate(x, search.model(x))
        return last if best is None else best | last
