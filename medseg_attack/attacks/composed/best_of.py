"""The worst result of several attacks, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.keeping import UNITS, Kept, units
from medseg_attack.errors import InputError, require
from medseg_attack.registry import register, spec
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, Attack, Ball, Bindable, Image, Mask, Model

EVERYTHING_LOST = 1.0  # the harm of an image on which every organ is lost: there is no worse


@register(
    "best_of",
    kind="attack",
    cost="up to sum(attacks) + count(attacks) * (unit == 'volume') forward, sum(attacks) backward",
    reaches="all in eps",
    shown_by="best_of((pgd(steps=6), apgd(steps=10)))",
)
@dataclass(frozen=True)
class BestOf(Bindable):
    """The worst result of several attacks, image by image; between equals, the smaller change.

    No threshold ends the search. An image is settled when every organ of it is lost; the attacks after that are not
    run on it.

    Attributes:
        attacks: attacks of one ball, in the order in which they run; at least one.
        unit: what has one Dice. "slice": each image is a score of its own. "volume": of each slice the image is kept
            that lowers Dice of its whole volume most, as far as its slices are in one batch. That takes a forward pass
            more for each attack.

    Raises:
        InputError: the attacks have different balls, or there is none; there is no such unit, or anatomy moves.
    """

    attacks: tuple[Attack, ...] = (PGD(), APGD())
    unit: str = "slice"

    def __post_init__(self) -> None:
        require(self, unit=UNITS)
        balls = list(dict.fromkeys(attack.ball for attack in self.attacks))
        if len(balls) != 1:
            got = ", ".join(map(spec, balls)) or "no attack"
            raise InputError(f"expected attacks of one ball for best_of, got {got}; give all of them the same")
        if self.unit == "volume" and self.ball.moves_anatomy:
            raise InputError("expected unit='slice' for best_of of attacks that move anatomy, got 'volume'; write it")

    @property
    def ball(self) -> Ball:
        return self.attacks[0].ball

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        """Runs the attacks one after the other, each on the images that are not settled yet (the active set)."""
        best: Adversarial | None = None
        kept: Kept | None = None
        passes = torch.zeros(len(image), 2, dtype=torch.int64, device=image.device)
        active = torch.arange(len(image), device=image.device)
        for attack in self.attacks:
            counted = CountedModel(model)
            if self.setting is not None and self.setting.cases and len(active) < len(image):
                setting = self.setting.at(active)
                attack, counted = bind(attack, setting), CountedModel(bind(model, setting))
            result = attack(counted, image[active], target[active], [seeds[i] for i in active.tolist()])
            if self.unit == "volume":
                kept = self._kept_with(kept, counted, result, target, active)
            spent = torch.tensor([counted.forwards, counted.backwards], device=image.device)
            passes[active] += spent if result.passes is None else result.passes
            result = replace(result, passes=None)
            best = result if best is None else best | _among(result, active, len(image))
            active = ((best.harm if kept is None else kept.harm) < EVERYTHING_LOST).nonzero()[:, 0]
            if not len(active):
                break
        assert best is not None  # there is an attack
        if kept is not None:
            best = kept.result(self.ball, image)
        return replace(best, passes=passes)

    def _kept_with(
        self, kept: Kept | None, model: CountedModel, result: Adversarial, target: Mask, index: Tensor
    ) -> Kept:
        """The images that are kept after one more result."""
        with torch.no_grad():
            pred = model.decide(model(result.image))
        if kept is None:  # the first attack runs on all images
            cases = () if self.setting is None else self.setting.cases
            return Kept(model.task, result.image, pred, target, units(self.unit, cases, result.image))
        kept.offer(result.image, pred, index)
        return kept


def _among(result: Adversarial, index: Tensor, n: int) -> Adversarial:
    """The result of the samples at `index` as one of all `n`; the others get a harm of -1, so that any is worse."""

    def spread(values: Tensor, fill: float = 0) -> Tensor:
        return values.new_full((n, *values.shape[1:]), fill).index_copy(0, index, values)

    return Adversarial(
        spread(result.image),
        spread(result.harm, -1.0),
        spread(result.size),
        None if result.flow is None else spread(result.flow),
        None if result.success is None else spread(result.success),
        truth=None if result.truth is None else spread(result.truth),
    )
