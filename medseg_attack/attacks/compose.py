"""Attacks made of attacks: each image keeps the worst that any of them found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from medseg_attack.attacks.apgd import APGD
from medseg_attack.attacks.gradient import PGD
from medseg_attack.attacks.square import Square
from medseg_attack.attacks.variations import reseeded
from medseg_attack.balls import Linf
from medseg_attack.errors import InputError, nearest
from medseg_attack.metered import Metered, picked
from medseg_attack.objectives import bce, js, soft_dice
from medseg_attack.parts import told
from medseg_attack.registry import register, spec
from medseg_attack.types import Adversarial, Attack, Ball, Image, LogOdds, Mask, Model, Objective, Task
from medseg_attack.weighted import balanced_bce, cosine_bce, masked_bce, masked_margin

WIDER = (2.0, 1.5, 1.0)
OVER = 1.0  # the harm of an image on which every organ is lost: there is no worse


@register("best_of", kind="attack")
@dataclass(frozen=True)
class BestOf:
    """The worst that any of several attacks finds, image by image; between equals, the smaller change.

    No threshold ends the search. An image is settled only when every organ of it is lost; what attacks are left then
    are not run on it.

    Attributes:
        attacks: of one ball.
    """

    attacks: tuple[Attack, ...] = (PGD(), APGD())

    def __post_init__(self) -> None:
        balls = list(dict.fromkeys(attack.ball for attack in self.attacks))
        if len(balls) != 1:
            got = ", ".join(map(spec, balls)) or "no attack"
            raise InputError(f"expected attacks of one ball for best_of, got {got}; give all of them the same")

    @property
    def ball(self) -> Ball:
        return self.attacks[0].ball

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        """What the attacks find one after the other, each on the images that are not settled (the active set)."""
        best: Adversarial | None = None
        passes = torch.zeros(len(image), 2, dtype=torch.int64, device=image.device)
        at = torch.arange(len(image), device=image.device)
        for attack in self.attacks:
            whole = len(at) == len(image)
            metered = Metered(model if whole else picked(model, at))
            one = attack if whole else told(attack, "at", at)
            found = one(metered, image[at], target[at], [seeds[i] for i in at.tolist()])
            spent = torch.tensor([metered.forwards, metered.backwards], device=image.device)
            passes[at] += spent if found.passes is None else found.passes
            found = replace(found, passes=None)
            best = found if best is None else best | _among(found, at, len(image))
            at = (best.harm < OVER).nonzero()[:, 0]
            if not len(at):
                break
        assert best is not None  # there is an attack
        return replace(best, passes=passes)


def _among(found: Adversarial, at: Tensor, n: int) -> Adversarial:
    """What was found of some samples, among all `n`: of the others nothing is worse than whatever they have."""

    def spread(some: Tensor | None, fill: float = 0) -> Tensor | None:
        return None if some is None else some.new_full((n, *some.shape[1:]), fill).index_copy(0, at, some)

    each = {name: spread(getattr(found, name)) for name in ("image", "size", "flow", "success")}
    return Adversarial(**each, harm=spread(found.harm, -1.0))  # type: ignore[arg-type]


@register("restarts", kind="attack")
@dataclass(frozen=True)
class Restarts:
    """The worst of several runs of an attack from other random numbers, image by image."""

    attack: Attack = PGD()
    n: int = 3

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"expected n >= 1, got {self.n}; check restarts")

    @property
    def ball(self) -> Ball:
        return self.attack.ball

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        runs = (
            self.attack(model, image, target, reseeded(seeds, "restart", run) if run else seeds)
            for run in range(self.n)
        )
        return reduce(or_, runs)


@register("for_organ", kind="attack")
@dataclass(frozen=True)
class ForOrgan:
    """The attack against one organ: climbed, judged and kept by that organ's Dice alone.

    An attack returns one image per case, the worst on the mean of the organs; the worst case of an organ is another
    image, and another run. Read the organ's own column of it: the others are not what was attacked.

    Attributes:
        organ: its name; "" attacks all organs at once.
    """

    attack: Attack = PGD()
    organ: str = ""

    @property
    def ball(self) -> Ball:
        return self.attack.ball

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        if not self.organ:
            return self.attack(model, image, target, seeds)
        organs = [model.task.classes[k] for k in model.task.scored]
        if self.organ not in organs:
            raise InputError(
                f"expected an organ of {model.task.name}, got {self.organ!r}; {nearest(self.organ, organs)}"
            )
        k = model.task.classes.index(self.organ)
        return self.attack(_OneOrgan(model, k), image, target[:, k : k + 1], seeds)


@dataclass(frozen=True, eq=False)
class _OneOrgan:
    """A model that is asked for one class: whether a pixel is of it, and how sure."""

    model: Model
    k: int

    def at(self, index: Tensor) -> "_OneOrgan":
        return replace(self, model=picked(self.model, index))

    @property
    def task(self) -> Task:
        return Task(self.model.task.name, (self.model.task.classes[self.k],), channels=self.model.task.channels)

    def __call__(self, image: Image) -> LogOdds:
        """Positive where the model's decision is this class: of an exclusive task, its logit less the best other."""
        log_odds = self.model(image)
        own = log_odds[:, self.k : self.k + 1]
        if not self.model.task.exclusive:
            return own
        others = torch.cat((log_odds[:, : self.k], log_odds[:, self.k + 1 :]), 1).amax(1, keepdim=True)
        log_p = torch.nn.functional.logsigmoid
        return log_p(own) - log_p(others)

    def decide(self, log_odds: LogOdds) -> Mask:
        return log_odds >= 0


@register("sea", kind="attack")
def sea(ball: Ball = Linf(), steps: int = 300) -> BestOf:
    """The worst of four APGD runs from wider balls, one per objective (Croce et al., arXiv 2306.12941).

    The objectives are masked_bce, balanced_bce, js and masked_margin, for an exclusive task in their softmax forms:
    masked, balanced and Jensen-Shannon as in the paper, spherical as in its code. Kept by Dice instead of accuracy.
    """
    objectives: tuple[Objective, ...] = (masked_bce, balanced_bce, js, masked_margin)
    return BestOf(tuple(APGD(ball, objective, steps, radii=WIDER) for objective in objectives))


@register("strongest", kind="attack")
def strongest(ball: Ball = Linf(), steps: int = 100, queries: int = 500) -> BestOf:
    """The worst of sea, CosPGD, APGD on soft Dice, PGD with restarts, and square: what to report robustness with.

    Every member is kept by its worst iterate. PGD and CosPGD move by 5 balls in all, at most a quarter per step.
    """
    size = min(5 / steps, 0.25)
    return BestOf(
        (
            *sea(ball, steps).attacks,
            PGD(ball, cosine_bce, steps, size),
            APGD(ball, soft_dice, steps, radii=WIDER),
            PGD(ball, bce, steps, size, restarts=2),
            Square(ball, soft_dice, queries),
        )
    )
