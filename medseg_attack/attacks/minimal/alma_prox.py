"""ALMA-prox: an augmented Lagrangian with a proximal step on the norm."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medseg_attack.attacks.minimal.dag import WIDEST
from medseg_attack.attacks.minimal.search import MinimalAttack, Search
from medseg_attack.errors import require
from medseg_attack.numerics.samples import gradient_of, widen
from medseg_attack.registry import register
from medseg_attack.threat.goals.criteria import ByPixels
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, PerSample

HALVINGS = 40  # of the search for a proximal point: to 1e-12 of its start


def prox_linf(change: Image, weight: PerSample, metric: Image, image: Image) -> Image:
    """The proximal point of the Linf norm in a diagonal metric, within [0, 1].

    It is argmin_v weight |v|_inf + 1/2 sum(metric (v - change)^2) with image + v in [0, 1]. v is `change` cut to the
    box and to [-a, a]; the slope in a, weight - sum of metric (|change| - a) over what is cut, rises with a, so its
    zero is found by bisection.
    """
    boxed = (image + change).clamp(0, 1) - image
    sizes, whole, metric = boxed.abs().flatten(1), change.abs().flatten(1), metric.flatten(1)
    low, high = torch.zeros_like(weight), sizes.amax(1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        cut = torch.where(sizes > middle[:, None], metric * (whole - middle[:, None]), 0.0).sum(1)
        low, high = torch.where(cut > weight, middle, low), torch.where(cut > weight, high, middle)
    a = widen(high, boxed)
    return boxed.clamp(-a, a)


@register(
    "alma_prox",
    kind="attack",
    cost="steps + 3 forward, steps backward",
    norm="least linf",
    reaches="within 1.01 of the least",
)
@dataclass(frozen=True)
class AlmaProx(MinimalAttack):
    """Least change by an augmented Lagrangian, with a proximal step in Linf (ALMAProx; Rony et al., arXiv 2206.07179).

    Published at CVPR 2023. Every entry has a multiplier of its own. The penalty's slope is the true one: the released
    code drops a term for entries that are just not adversarial, so that they get next to no push. Margins are divided
    by the spread of the logits (DLR) where there are three classes or more, else by their mean size in the case.

    Attributes:
        step_size: learning rate > 0 of the image in [0, 1], absolute; it falls to a tenth after the first success.
        every: steps between two checks of which penalties must rise, at least 1.

    Raises:
        InputError: `every` is below 1, or `step_size` not above 0.
    """

    norms = ("linf",)

    ball: Ball = WIDEST
    steps: int = 500
    step_size: float = 0.001
    every: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, every=1, step_size="(0, inf)")

    def search(self, search: Search) -> Adversarial:
        image = search.image
        change, moment = torch.zeros_like(image), torch.zeros_like(image)
        best = search.candidate(image, search.model(image))
        scale = torch.ones_like(best.size)
        first = torch.full_like(best.size, self.steps / 2)  # the step of the first success, if in the first half
        state: _Multipliers | None = None
        success = search.aim.success
        may_fail = 1 - success.share if isinstance(success, ByPixels) else 0.0  # share that need not be adversarial
        for step in range(self.steps):
            x, log_odds = search.look(image + change)
            candidate = search.candidate(x, log_odds)
            best |= candidate
            reached = candidate.harm >= 1
            first = torch.where(reached & (step < first), float(step), first)
            scale = torch.where(reached, scale / 1.02, scale / 0.98).clamp(0.1, 1.0)
            excess = search.excess(log_odds)
            constraint = widen(scale, excess) * (1e-4 - excess) / _spread(search, log_odds)
            state = _Multipliers.start(constraint) if state is None else state.after(constraint, step, self.every)
            kept = _kept(constraint.detach(), may_fail * step / (self.steps - 1 or 1))
            grad = gradient_of(torch.where(kept, _penalty(constraint, state.weight, state.rise), 0.0), x)
            moment = 0.8 * moment + 0.2 * grad.square()
            metric = (moment / (1 - 0.8 ** (step + 1))).sqrt().clamp(min=1e-8)
            rate = self._rate(step, first)
            change = prox_linf(change - widen(rate, grad) * grad / metric, rate, metric, image)
        last = image + change
        return best | search.candidate(last, search.model(last))

    def _rate(self, step: int, first: PerSample) -> PerSample:
        """Constant until the first success, then like 1 / step down to a tenth at the end."""
        span = (self.steps - first).clamp(min=1) / 9
        return self.step_size * span / ((step - first).clamp(min=0) + span)


def _spread(search: Search, log_odds: LogOdds) -> Tensor:
    """The spread of the logits: margins are divided by it, so that they do not depend on the logits' scale."""
    if search.aim.task.exclusive and log_odds.shape[1] > 2:
        ranked = functional.logsigmoid(log_odds).sort(1, descending=True).values
        third = ranked[:, 2:3] if search.aim.goal is None else ranked[:, 2:4].mean(1, keepdim=True)
        return ranked[:, :1] - third + 1e-8
    return widen(log_odds.detach().abs().flatten(1).mean(1), log_odds) + 1e-8


def _kept(constraint: Tensor, share: float) -> Tensor:
    """All entries but the hardest `share` of each class."""
    flat = constraint.flatten(2)
    n = int(share * flat.shape[2])
    if n == 0:
        return torch.ones_like(constraint, dtype=torch.bool)
    hardest = flat.topk(n, 2).values[..., -1:]
    return (flat < hardest).view_as(constraint)


def _penalty(y: Tensor, weight: Tensor, rise: Tensor) -> Tensor:
    """P(y) with slope `weight` at 0: cubic where the constraint is violated, hyperbolic where it is met."""
    above, below = y.clamp(min=0), y.clamp(max=0)
    violated = weight * above + weight * rise * above.square() + rise.square() * above**3 / 6
    return violated + weight * below / (1 - rise.clamp(min=1) * below)


@dataclass(frozen=True, eq=False)
class _Multipliers:
    """The state of the augmented Lagrangian, for each entry.

    Attributes:
        weight: the multiplier (mu).
        rise: its penalty parameter (rho).
        met: whether the constraint was met since penalties were last checked.
        before: the constraint when they were.
    """

    weight: Tensor
    rise: Tensor
    met: Tensor
    before: Tensor

    @classmethod
    def start(cls, constraint: Tensor) -> "_Multipliers":
        now = constraint.detach()
        return cls(torch.ones_like(now), torch.full_like(now, 0.01), now < 0, now)

    def after(self, constraint: Tensor, step: int, every: int) -> "_Multipliers":
        now, rise, met, before = constraint.detach(), self.rise, self.met | (constraint.detach() < 0), self.before
        if step % every == 0:
            rise = torch.where(~met & (now > 0.95 * before), 2 * rise, rise)
            met, before = now < 0, now
        y = now.requires_grad_()
        with torch.enable_grad():
            (grown,) = torch.autograd.grad(_penalty(y, self.weight, rise).sum(), y)
        weight = (0.8 * self.weight + 0.2 * grown).clamp(1e-12, 1.0)
        return _Multipliers(weight, rise, met, before.detach())
