"""The worst that any of several attacks finds, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medseg_attack.attacks.counting import CountedModel, picked
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import InputError
from medseg_attack.registry import register, spec
from medseg_attack.registry.parts import told
from medseg_attack.types import Adversarial, Attack, Ball, Image, Mask, Model

EVERYTHING_LOST = 1.0  # the harm of an image on which every organ is lost: there is no worse


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
            metered = CountedModel(model if whole else picked(model, at))
            one = attack if whole else told(attack, "at", at)
            found = one(metered, image[at], target[at], [seeds[i] for i in at.tolist()])
            spent = torch.tensor([metered.forwards, metered.backwards], device=image.device)
            passes[at] += spent if found.passes is None else found.passes
            found = replace(found, passes=None)
            best = found if best is None else best | _among(found, at, len(image))
            at = (best.harm < EVERYTHING_LOST).nonzero()[:, 0]
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
