"""Least L2 changes by trading their size against a loss: C&W, L-BFGS, ASMA."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.minimal import Least, Search, check, slope, wide
from medseg_attack.balls import L2, TINY
from medseg_attack.criteria import ByPixels, Criterion
from medseg_attack.errors import InputError
from medseg_attack.goals import Erase, Goal
from medseg_attack.registry import About, register
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, PerSample

WIDEST = L2(20.0)


def _next(price: PerSample, low: PerSample, high: PerSample, reached: Tensor) -> tuple[PerSample, PerSample, PerSample]:
    """The price of an entry to try next, between the largest that failed and the least that succeeded."""
    low, high = torch.where(reached, low, price), torch.where(reached, price, high)
    return torch.where(high.isinf(), 10 * price, (low + high) / 2), low, high


@register("cw", kind="attack", about=About(norm="least l2"))
@dataclass(frozen=True)
class CarliniWagner(Least):
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

    def search(self, found: Search) -> tuple[Adversarial, None]:
        best = found.seen(found.image, found.model(found.image))
        price = torch.full_like(best.size, self.price)
        low, high = torch.zeros_like(price), torch.full_like(price, torch.inf)
        for _ in range(self.searches):
            tried = self._descend(found, price)
            best |= tried
            price, low, high = _next(price, low, high, tried.harm >= 1)
        return best, None

    def _descend(self, found: Search, price: PerSample) -> Adversarial:
        """The best of one descent at these prices."""
        x, first, second = found.image, torch.zeros_like(found.image), torch.zeros_like(found.image)
        seen = []
        for step in range(self.steps):
            here, log_odds = found.look(x)
            seen.append(found.seen(here, log_odds))
            lack = functional.relu(self.kappa - found.excess(log_odds))
            grad = 2 * (x - found.image) + wide(price, x) * slope(lack, here)
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad.square()
            metric = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            x = (x - self.step_size / (1 - 0.9 ** (step + 1)) * first / metric).clamp(0, 1)
            seen = [reduce(or_, seen)]
        return seen[0] | found.seen(x, found.model(x))


@register("lbfgs", kind="attack", about=About(norm="least l2"))
@dataclass(frozen=True)
class Lbfgs(Least):
    """Least squares plus a price on cross-entropy, by L-BFGS within [0, 1] (Szegedy et al., arXiv 1312.6199).

    All cases of a batch at once, each with its own memory, step length and price; scipy's optimiser takes one at a
    time. Cross-entropy is that of the wanted side of each entry against the strongest other, mean over entries: away
    from the truth it is bounded, where minus the truth's own is not.

    Attributes:
        steps: evaluations per price.
        searches: prices tried.
        price: the first; the next is ten times that after a failure.
    """

    ball: Ball = WIDEST
    goal: Goal | None = None
    success: Criterion = ByPixels()
    steps: int = 50
    searches: int = 6
    price: float = 10.0

    def __post_init__(self) -> None:
        check(self, "l2")
        if self.searches < 1:
            raise InputError(f"expected searches >= 1, got {self.searches}; check the attack")

    def search(self, found: Search) -> tuple[Adversarial, None]:
        best = found.seen(found.image, found.model(found.image))
        price = torch.full_like(best.size, self.price)
        low, high = torch.zeros_like(price), torch.full_like(price, torch.inf)
        for _ in range(self.searches):
            tried = _descended(found, price, self.steps)
            best |= tried
            price, low, high = _next(price, low, high, tried.harm >= 1)
        return best, None


MEMORY = 10  # pairs of steps and slopes
Flat = Float[Tensor, "b n"]


def _descended(found: Search, price: PerSample, steps: int) -> Adversarial:
    """The best that projected L-BFGS saw with these prices: `steps` evaluations, Armijo's rule, per sample."""

    def valued(x: Image) -> tuple[PerSample, Flat, Adversarial]:
        here, log_odds = found.look(x)
        entries = functional.softplus(-found.excess(log_odds)).flatten(1).mean(1)
        value = (here - found.image).square().flatten(1).sum(1) + price * entries
        return value.detach(), slope(value, here).flatten(1), found.seen(here, log_odds)

    x = found.image
    value, grad, best = valued(x)
    pairs: list[tuple[Flat, Flat]] = []
    unit = 1 / (grad.norm(dim=1) + TINY)  # the first step has length 1
    stride = torch.ones_like(value)
    for _ in range(steps - 1):
        flat = x.flatten(1)
        free = ~(((flat <= 0) & (grad > 0)) | ((flat >= 1) & (grad < 0)))
        way = _newton(grad * free, pairs, unit) * free
        way = torch.where(((way * grad).sum(1) > 0)[:, None], way, unit[:, None] * grad * free)
        trial = (x - (stride[:, None] * way).view_as(x)).clamp(0, 1)
        new_value, new_grad, seen = valued(trial)
        best |= seen
        moved = (trial - x).flatten(1)
        taken = new_value <= value + 1e-4 * (grad * moved).sum(1)
        bent = torch.where(taken[:, None], new_grad - grad, 0.0)
        moved = torch.where(taken[:, None], moved, 0.0)
        curved = (moved * bent).sum(1)
        unit = torch.where(curved > TINY, curved / (bent.square().sum(1) + TINY), unit)
        kept = (curved > TINY)[:, None]
        pairs = [*pairs[1 - MEMORY :], (moved * kept, bent * kept)]
        x = torch.where(wide(taken, x), trial, x)
        value, grad = torch.where(taken, new_value, value), torch.where(taken[:, None], new_grad, grad)
        stride = torch.where(taken, 1.0, stride / 4)
    return best


def _newton(grad: Flat, pairs: Sequence[tuple[Flat, Flat]], unit: PerSample) -> Flat:
    """The inverse Hessian of the pairs times the gradient (two loops); a pair of zeros is none."""

    def times(a: Flat, b: Flat) -> Float[Tensor, "b 1"]:
        return (a * b).sum(1, keepdim=True)

    shares = []
    for moved, bent in reversed(pairs):
        share = times(moved, grad) / (times(moved, bent) + TINY)
        shares.append(share)
        grad = grad - share * bent
    grad = unit[:, None] * grad
    for (moved, bent), share in zip(pairs, reversed(shares), strict=True):
        grad = grad + moved * (share - times(bent, grad) / (times(moved, bent) + TINY))
    return grad


@register("asma", kind="attack", about=About(norm="least l2"))
@dataclass(frozen=True)
class Asma(Least):
    """Raises the wanted class where it is not yet seen, less the change's square (Ozbulak et al., arXiv 1907.13124).

    Targeted alone. Steps grow with the overlap that is reached. Exclusive tasks raise log-probabilities, since raw
    logits are known up to a constant only; an overlap is per case and over the classes that are there.

    Attributes:
        step_size: root mean square of a step at full overlap, on top of `least`.
        least: root mean square of any step.
        normalised: False multiplies raw gradients, as published, whose scale is that of network and image.
    """

    ball: Ball = WIDEST
    goal: Goal | None = Erase()
    success: Criterion = ByPixels()
    steps: int = 200
    step_size: float = 1 / 255
    least: float = 0.1 / 255
    normalised: bool = True

    def __post_init__(self) -> None:
        check(self, "l2")
        if self.goal is None:
            raise InputError(
                "expected a goal for asma, which can only go towards one, got none; give goal=erase('liver')"
            )

    def search(self, found: Search) -> tuple[Adversarial, None]:
        assert found.aim.goal is not None
        wanted, task = found.aim.goal(found.target), found.aim.task
        x = found.image
        best = found.seen(x, found.model(x))
        for step in range(self.steps):
            here, log_odds = found.look(x)
            best |= found.seen(here, log_odds)
            overlap = _overlap(found.model.decide(log_odds.detach()), wanted, list(task.scored)).to(x)
            grad = slope(_raised(found, log_odds, wanted), here) - 2 * (x - found.image)
            if self.normalised:
                grad = grad / (wide(grad.flatten(1).square().mean(1).sqrt(), grad) + TINY)
            # the paper's first step knows of no overlap yet
            rate = self.least + self.step_size * (overlap if step else torch.zeros_like(overlap))
            x = (x + wide(rate, x) * grad).clamp(0, 1)
        return best | found.seen(x, found.model(x)), None


def _raised(found: Search, log_odds: LogOdds, wanted: Mask) -> Tensor:
    """What is raised of each entry that is not as wanted."""
    excess = found.excess(log_odds)
    if found.aim.task.exclusive:
        excess, missing = torch.where(wanted, functional.logsigmoid(log_odds), 0.0), excess.detach() <= 0
        return torch.where(missing, excess, 0.0)
    return torch.where(excess.detach() <= 0, excess, 0.0)


def _overlap(pred: Mask, wanted: Mask, classes: Sequence[int]) -> PerSample:
    """IoU, mean over the classes in either mask; 1 where there are none."""
    pred, wanted = pred[:, classes].flatten(2), wanted[:, classes].flatten(2)
    either = (pred | wanted).sum(2)
    iou = (pred & wanted).sum(2) / either.clamp(min=1)
    there = (either > 0).sum(1)
    return torch.where(there > 0, iou.sum(1) / there.clamp(min=1), 1.0)


@register("asma_ozbulak2019", kind="attack", about=About(norm="least l2"))
def asma_ozbulak2019(
    ball: Ball = WIDEST, goal: Goal | None = Erase(), success: Criterion = ByPixels(), steps: int = 200
) -> Asma:
    """ASMA with raw gradients and the published rates (arXiv 1907.13124): made for one network's logits."""
    return Asma(ball, goal, success, steps, step_size=1e-6, least=1e-7, normalised=False)
