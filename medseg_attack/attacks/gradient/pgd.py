"""The sign-gradient family: one loop, of which FGSM, BIM, PGD, MI-, NI-, DI2- and TI-FGSM, SegPGD and CosPGD are
configurations.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import chain
from operator import or_

import torch

from medseg_attack.attacks.climbing import Climbing, slopes
from medseg_attack.attacks.gradient.input_diversity import Shrunk
from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.fields import blurred
from medseg_attack.numerics.samples import reseeded, scaled
from medseg_attack.numerics.slabs import by_slab, is_one_slab
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import even_change
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.threat.objectives.weighted import cosine_bce, progressive_bce
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, Model, Objective


@register(
    "pgd",
    kind="attack",
    cost="restarts * (steps + 1 + keep_worst) forward, restarts * steps backward",
    reaches="all in eps",
)
@dataclass(frozen=True)
class PGD(Climbing):
    """Projected gradient ascent from random starts; the worst iterate of each image (Madry et al., arXiv 1706.06083).

    Attributes:
        momentum: weight of the last direction in the next one, 0 or more (Dong et al., arXiv 1710.06081, eq. 6-7).
            Each gradient is first divided by its mean magnitude, so the objective's scale does not matter.
        look_ahead: True takes the gradient where the momentum leads (Lin et al., arXiv 1908.06281, eq. 6).
        diversity: chance in [0, 1] that a gradient is taken through a smaller copy of the image (`Shrunk`).
        smooth: width in pixels, an odd number, of the Gaussian that blurs gradients, three standard deviations to a
            side as in the released code (Dong et al., arXiv 1904.02884); 0 blurs nothing.
        random_start: True begins at a random point of the ball, False at the image.
        keep_worst: False returns the last iterate, as FGSM, BIM and MI-FGSM were published. True never returns an
            image that is less harmful than the untouched one.

    Raises:
        InputError: a field is out of range.
    """

    steps: int = 20
    step_size: float = 0.25
    momentum: float = 0.0
    look_ahead: bool = False
    diversity: float = 0.0
    smooth: int = 0
    random_start: bool = True
    restarts: int = 1
    keep_worst: bool = True

    def __post_init__(self) -> None:
        require(self, steps=1, restarts=1, step_size=0, momentum=0, diversity="[0, 1]")
        if self.smooth < 0 or (self.smooth and self.smooth % 2 == 0):
            raise InputError(f"expected smooth to be 0 or an odd number of pixels, got {self.smooth}; write smooth=15")

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        runs = (
            self._climb(model, image, target, reseeded(seeds, run) if run else seeds) for run in range(self.restarts)
        )
        return reduce(or_, runs)

    @property
    def shares_pass(self) -> bool:
        """Whether it takes one gradient, at the image, and has no iterate to choose from."""
        return self.steps == 1 and not (self.random_start or self.keep_worst) and self.restarts == 1

    def sweep(
        self, model: Model, image: Image, target: Mask, seeds: Sequence[int], balls: Sequence[Ball]
    ) -> Iterator[Adversarial]:
        """The attack in several balls, one result for each; a single step from the image takes one gradient for all."""
        yield from self.sweep_objectives(model, image, target, seeds, [(self.objective, balls)])

    def sweep_objectives(
        self,
        model: Model,
        image: Image,
        target: Mask,
        seeds: Sequence[int],
        sweeps: Sequence[tuple[Objective, Sequence[Ball]]],
    ) -> Iterator[Adversarial]:
        """The results of every objective in its balls, from one forward pass of a single step where memory allows it.

        Of a single step only the first result is judged, so that its passes are those of the attack alone. The harm
        of the others is NaN: there is no iterate to choose from, and who scores them asks the model anyway.
        """
        if not self.shares_pass or sum(len(balls) for _, balls in sweeps) == 1:
            for objective, balls in sweeps:
                variants = (replace(self, ball=ball, objective=objective) for ball in balls)
                yield from (variant(model, image, target, seeds) for variant in variants)
            return
        objectives = [for_task(objective, model.task) for objective, _ in sweeps]
        shared = [objectives] if is_one_slab(image) else [[objective] for objective in objectives]
        grads = chain.from_iterable(self._gradients(model, each, image, target, 0, seeds) for each in shared)

        def result(ball: Ball, direction: Image, judged: bool) -> Adversarial:
            x = ball.project(self._moved(image, ball.step(direction, image)), image)
            if judged:
                return judge(model, ball, x, image, target)
            return Adversarial(x, torch.full_like(x.flatten(1)[:, 0], torch.nan), ball.size(x, image))

        for n, (_, balls) in enumerate(sweeps):
            direction = self._scaled(next(grads))
            # no name here holds a result: its memory is free before the next one is computed
            yield from (result(ball, direction, n == m == 0) for m, ball in enumerate(balls))
            del direction

    def _climb(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        x = self.ball.sample(image, seeds) if self.random_start else image
        worst = judge(model, self.ball, image, image, target) if self.keep_worst else None

        def keep(x: Image, log_odds: LogOdds) -> None:
            nonlocal worst
            if worst is not None:  # the image that was worse before is gone while the gradient is computed
                worst |= judge_prediction(model, self.ball, x, image, model.decide(log_odds), target)

        is_own_pass = not (self.look_ahead or self.diversity)  # whether gradients are taken at the iterate itself
        direction: Image | None = None
        for step in range(self.steps):
            base = x
            if self.look_ahead and direction is not None:  # where the momentum leads to; the paper does not cut it
                base = (x + self.step_size * self.momentum * even_change(self.ball, image) * direction).clamp(0, 1)
            judged = worst is not None and bool(step or self.random_start)
            look = partial(keep, x) if judged and is_own_pass else None
            grad = next(self._gradients(model, [self.climbed(model)], base, target, step, seeds, look))
            if worst is not None and judged and not is_own_pass:
                worst |= judge(model, self.ball, x, image, target)
            grad = self._scaled(grad)
            direction = grad if direction is None else by_slab(self._accumulated, direction, grad)
            del base, grad, look
            move = self.ball.step(direction, x)
            direction = direction if self.momentum else None  # its memory is free for what follows
            x = self._moved(x, move)
            del move
            x = self.ball.project(x, image)
        last = judge(model, self.ball, x, image, target)
        return last if worst is None else worst | last

    def _moved(self, x: Image, move: Image) -> Image:
        """The image after a step, which is not yet in the ball."""
        return by_slab(lambda move, x: self.step_size * move + x, move, x)

    def _gradients(
        self,
        model: Model,
        objectives: Sequence[Objective],
        x: Image,
        target: Mask,
        step: int,
        seeds: Sequence[int],
        look: Callable[[LogOdds], None] | None = None,
    ) -> Iterator[Image]:
        """The gradient of each objective at `x` or at a smaller copy, whose log-odds `look` gets."""
        shrunk = Shrunk.draw(x, self.diversity, reseeded(seeds, "shrunk", step)) if self.diversity else None
        through = model if shrunk is None else shrunk.through(model)
        return slopes(through, objectives, x, target, step / self.steps, look)

    def _scaled(self, grad: Image) -> Image:
        """The gradient as it is accumulated."""
        return scaled(blurred(grad, self.smooth) if self.smooth else grad)

    def _accumulated(self, direction: Image, grad: Image) -> Image:
        """The direction with one more gradient."""
        return self.momentum * direction + grad


@register("fgsm", kind="attack", cost="2 forward, 1 backward", reaches="all in eps")
def fgsm(ball: Ball = Linf(), objective: Objective = bce) -> PGD:
    """One step along the gradient to the edge of the ball (Goodfellow et al., arXiv 1412.6572)."""
    return PGD(ball, objective, steps=1, step_size=1.0, random_start=False, keep_worst=False)


@register("bim", kind="attack", cost="steps + 1 forward, steps backward", reaches="all in eps")
def bim(ball: Ball = Linf(), objective: Objective = bce, steps: int = 10, step_size: float = 0.25) -> PGD:
    """FGSM in several small steps from the image itself; the last iterate (Kurakin et al., arXiv 1607.02533)."""
    return PGD(ball, objective, steps, step_size, random_start=False, keep_worst=False)


@register("mi_fgsm", kind="attack", cost="steps + 1 forward, steps backward", reaches="all in eps")
def mi_fgsm(ball: Ball = Linf(), objective: Objective = bce, steps: int = 10, momentum: float = 1.0) -> PGD:
    """FGSM in several steps with momentum; the last iterate (Dong et al., arXiv 1710.06081).

    Each step is 1 / `steps` of the ball.
    """
    return PGD(ball, objective, steps, 1 / steps, momentum, random_start=False, keep_worst=False)


@register("ni_fgsm", kind="attack", cost="steps + 1 forward, steps backward", reaches="all in eps")
def ni_fgsm(ball: Ball = Linf(), objective: Objective = bce, steps: int = 10, momentum: float = 1.0) -> PGD:
    """`mi_fgsm` whose gradients are taken where the momentum leads, as Nesterov's (Lin et al., arXiv 1908.06281)."""
    return replace(mi_fgsm(ball, objective, steps, momentum), look_ahead=True)


# a shrunk copy mixes pixels, and so does a blur: without them, it is reached
@register(
    "di2_fgsm",
    kind="attack",
    cost="steps + 1 forward, steps backward",
    reaches="all in eps",
    shown_by="di2_fgsm(diversity=0.0)",
)
def di2_fgsm(
    ball: Ball = Linf(), objective: Objective = bce, steps: int = 10, momentum: float = 1.0, diversity: float = 0.5
) -> PGD:
    """`mi_fgsm` with gradients through smaller copies of the image (Xie et al., arXiv 1803.06978).

    A copy's log-odds are carried back to the image's grid. `diversity` in [0, 1] is the chance of each gradient to be
    taken through a copy.
    """
    return replace(mi_fgsm(ball, objective, steps, momentum), diversity=diversity)


@register(
    "ti_fgsm",
    kind="attack",
    cost="steps + 1 forward, steps backward",
    reaches="all in eps",
    shown_by="ti_fgsm(smooth=1)",
)
def ti_fgsm(
    ball: Ball = Linf(), objective: Objective = bce, steps: int = 10, momentum: float = 1.0, smooth: int = 15
) -> PGD:
    """`mi_fgsm` with gradients blurred by a Gaussian (Dong et al., arXiv 1904.02884).

    `smooth` is the Gaussian's width in pixels, an odd number, or 0 for no blur.
    """
    return replace(mi_fgsm(ball, objective, steps, momentum), smooth=smooth)


@register("segpgd", kind="attack", cost="steps + 1 + keep_worst forward, steps backward", reaches="all in eps")
def segpgd(ball: Ball = Linf(), steps: int = 20, step_size: float = 0.25, keep_worst: bool = False) -> PGD:
    """PGD that weighs right pixels at first and wrong ones ever more; last iterate (Gu et al., arXiv 2207.12391)."""
    return PGD(ball, progressive_bce, steps, step_size, keep_worst=keep_worst)


@register("cospgd", kind="attack", cost="steps + 1 + keep_worst forward, steps backward", reaches="all in eps")
def cospgd(ball: Ball = Linf(), steps: int = 20, step_size: float = 0.25, keep_worst: bool = False) -> PGD:
    """PGD that weighs pixels by their alignment with the truth; last iterate (Agnihotri et al., arXiv 2302.02213)."""
    return PGD(ball, cosine_bce, steps, step_size, keep_worst=keep_worst)
