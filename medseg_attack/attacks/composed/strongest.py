"""The strongest attack for its cost: ascents of a Dice that grows sharper as they go on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from medseg_attack.attacks.keeping import UNITS, Kept, units
from medseg_attack.errors import require
from medseg_attack.metrics.harm import summed
from medseg_attack.numerics.samples import TINY, gradient_of, reseeded, widen
from medseg_attack.registry import register, with_eps
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, Ball, Bindable, Image, LogOdds, Mask, Model, PerSample, Setting, Task

WIDEST = 2.0  # radius of the ball that an ascent begins in, as a multiple of eps; it reaches eps half-way
LONGEST, SHORTEST = 2.0, 0.04  # first and last step, as multiples of eps
SOFTEST = 0.5  # first temperature, as a share of the log-odds of the untouched organs: tiny organs need one so soft
SHARPEST = 0.02  # last temperature: above it many pixels that are nearly an absent organ's are taken for its mask
ENOUGH = 120  # gradients for two ascents
PLENTY = 400  # gradients for three
PERIOD = 10  # steps after which it is asked whether anything is left to lose
ALPHA = 0.75  # the weight of a new step; the rest is the step before it again (arXiv 2003.01690)


@dataclass(frozen=True)
class Ascent:
    """One ascent from a random point.

    Attributes:
        until: the part of all gradients that is spent when it ends, in (0, 1].
        log: True climbs minus the log of each class's Dice, which pulls most at the organ that is nearly lost; False
            minus Dice.
        softest: its first temperature.
        sharpest: its last. Other temperatures lead to other images.
    """

    until: float
    log: bool = False
    softest: float = SOFTEST
    sharpest: float = SHARPEST


@register(
    "strongest",
    kind="attack",
    cost="up to gradients + 2 + (gradients >= 120) + (gradients >= 400) forward, gradients backward",
    reaches="all in eps",
    shown_by="strongest(gradients=40)",
)
@dataclass(frozen=True)
class Strongest(Bindable):
    """The worst iterate of one to three ascents of a Dice that grows sharper: report robustness with this.

    The soft Dice of a network's probabilities rises with certainty that no mask shows. Divided by a temperature that
    falls, log-odds turn into a mask, and soft Dice into the Dice that tables print. Each ascent begins in twice the
    ball, as SEA's do, and its steps shorten along a cosine. Iterates are judged by the log-odds of their gradient.

    Attributes:
        gradients: that are spent on each image, 1 or more: the cost. Forward passes are 4 more at most.
        unit: what has one Dice. "volume": of each slice the image is kept that lowers Dice of its whole volume most,
            as far as its slices are in one batch. "slice": each slice is a score of its own.

    Raises:
        InputError: `gradients` is below 1, or there is no such unit.
    """

    ball: Ball = Linf()
    gradients: int = 160
    unit: str = "volume"

    def __post_init__(self) -> None:
        require(self, gradients=1, unit=UNITS)

    @property
    def ascents(self) -> tuple[Ascent, ...]:
        """The ascents, one after the other: one of few gradients goes further than two of half as many.

        After a few hundred gradients an ascent no longer rises. Then one from elsewhere does more than a longer one.
        """
        if self.gradients < ENOUGH:
            return (Ascent(1.0),)
        if self.gradients < PLENTY:
            return (Ascent(0.6), Ascent(1.0, log=True, softest=0.25))
        return (Ascent(0.6), Ascent(0.75, log=True, softest=0.25), Ascent(1.0, sharpest=0.1))

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        """Runs the ascents one after the other, each on the images that are not settled yet."""
        cases = () if self.setting is None else self.setting.cases
        unit = units(self.unit, cases, image)
        with torch.no_grad():
            log_odds = model(image)
        kept = Kept(model.task, image, model.decide(log_odds), target, unit)
        everything = torch.arange(len(image), device=image.device)
        whole = _Scene(model, self.ball, image, target, unit, _scale(log_odds, target, model.task), everything)
        passes = torch.tensor([[1, 0]], device=image.device).repeat(len(image), 1)
        spent = 0
        for number, ascent in enumerate(self.ascents):
            steps = round(ascent.until * self.gradients) - spent
            active = (kept.harm < 1).nonzero()[:, 0]  # where every organ is lost there is no worse
            if not steps or not len(active):
                continue
            scene = whole if len(active) == len(image) else whole.at(active, self.setting)
            own_seeds = reseeded([seeds[i] for i in active.tolist()], "ascent", number)
            gradients = scene.climb(ascent, steps, own_seeds, kept)
            passes[active] += torch.tensor([gradients + 1, gradients], device=image.device)
            spent += steps
        return replace(kept.result(self.ball, image), passes=passes)


@dataclass(frozen=True, eq=False)
class _Scene:
    """Images that an ascent runs on.

    Attributes:
        unit: number of each image's unit, below the number of images.
        scale: mean size of each image's log-odds before the attack, where an organ is.
        index: places of the images in the batch; whole units.
    """

    model: Model
    ball: Ball
    image: Image
    target: Mask
    unit: Int[Tensor, "b"]
    scale: PerSample
    index: Int[Tensor, "b"]

    def at(self, index: Int[Tensor, "n"], setting: Setting | None) -> "_Scene":
        """The scene of some of the images, with its parts bound to their cases where those are known."""
        model, ball = self.model, self.ball
        if setting is not None and setting.cases:
            model, ball = bind(model, setting.at(index)), bind(ball, setting.at(index))
        unit = torch.unique(self.unit[index], return_inverse=True)[1]
        return _Scene(model, ball, self.image[index], self.target[index], unit, self.scale[index], index)

    def climb(self, ascent: Ascent, steps: int, seeds: Sequence[int], kept: Kept) -> int:
        """Offers the iterates inside the ball to `kept`, the last one by a forward pass of its own.

        Returns:
            The number of gradients: `steps`, or fewer where every organ of all images was lost before.
        """
        x = previous = self.ball.sample(self.image, seeds)
        gradients = 0
        for step in range(steps):
            if step % PERIOD == 0 and not (kept.harm[self.index] < 1).any():
                break
            progress = step / max(steps - 1, 1)
            radius = max(WIDEST - 2 * (WIDEST - 1) * progress, 1.0)
            length = SHORTEST + (LONGEST - SHORTEST) * (1 + math.cos(math.pi * progress)) / 2
            ball = self._widened(radius)
            x = ball.project(x, self.image).detach().requires_grad_()
            log_odds, gradients = self.model(x), step + 1
            grad = gradient_of(-self._dice(log_odds, progress, ascent), x)
            x = x.detach()
            if radius == 1:
                kept.offer(x, self.model.decide(log_odds.detach()), self.index)
            ahead = ball.project(x + length * self.ball.step(grad, x), self.image)
            momentum = ALPHA * (ahead - x) + (1 - ALPHA) * (x - previous) if step else ahead - x
            x, previous = ball.project(x + momentum, self.image), x
        x = self.ball.project(x, self.image)
        with torch.no_grad():
            kept.offer(x, self.model.decide(self.model(x)), self.index)
        return gradients

    def _widened(self, radius: float) -> Ball:
        """The ball with its radius that many times; itself where a wider one would hold every image."""
        eps = self.ball.eps * radius
        wide: Ball = with_eps(self.ball, eps) if radius > 1 and (eps < 1 or self.ball.eps >= 1) else self.ball
        return wide

    def _dice(self, log_odds: LogOdds, progress: float, ascent: Ascent) -> Float[Tensor, "b"]:
        """Dice of the sharpened probabilities of each unit, or its log: mean over classes."""
        temperature = widen(self.scale, log_odds) * ascent.softest * (ascent.sharpest / ascent.softest) ** progress
        if self.model.task.exclusive:
            p = torch.softmax(F.logsigmoid(log_odds) / temperature, 1)
        else:
            p = torch.sigmoid(log_odds / temperature)
        scored = self.model.task.scored_channels
        p, y = p[:, scored].flatten(2), self.target[:, scored].flatten(2)
        hit, size = summed((p * y).sum(2), self.unit), summed(p.sum(2) + y.sum(2), self.unit)
        dice = (2 * hit + 1) / (size + 1)  # a pixel more of each, so that an absent organ has a slope, too
        return (dice.log() if ascent.log else dice).mean(1)


def _scale(log_odds: LogOdds, target: Mask, task: Task) -> PerSample:
    """The mean size of each sample's log-odds on its organs; on the whole image where there is none."""
    scored = task.scored_channels
    size, organ = log_odds[:, scored].abs().flatten(1), target[:, scored].flatten(1)
    on_organs = (size * organ).sum(1) / organ.sum(1).clamp(min=1)
    return torch.where(organ.any(1), on_organs, size.mean(1)).clamp(min=TINY)
