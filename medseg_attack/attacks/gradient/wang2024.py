"""The single step of the code released with arXiv 2401.11224, a named variant beside the textbook `fgsm`.

It differs from FGSM in three ways, each of which can be had alone here: it blends the image with the signs instead
of adding them (`Blend`), it hands mask and output to the loss in swapped order (the `*_swapped` objectives), and it
perturbs the three copies of a grey image independently (which no scan can carry).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.climbing import Climbing, climb
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.samples import draw
from medseg_attack.registry import register, spec
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.swapped import SWAPPED
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model


@register("blend", kind="ball")
@dataclass(frozen=True)
class Blend(Linf):
    """A blend of image and signs, (1 - eps) x + eps sign(g), cut to [0, 1]: pixels change by up to 2 eps.

    Bright pixels may fall by 2 eps, and pixels without a gradient grow darker.

    Attributes:
        eps: weight of the signs, a share of the intensity range [0, 1].
    """

    eps: float = 0.009

    @property
    def limit(self) -> float:
        return 2 * self.eps

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps * (grad.sign() - image)

    def project(self, x: Image, x0: Image) -> Image:
        """The nearest blend of `x0` with values from -1 to 1, cut to [0, 1]."""
        one = torch.ones_like(x0)
        return x.clamp(x0 + self.step(-one, x0), x0 + self.step(one, x0)).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(x0 + self.step(draw(torch.rand, x0, seeds) - 0.5, x0), x0)


@register(
    "fgsm_wang2024",
    kind="attack",
    cost="2 forward, 1 backward",
    paper="Wang & Xu, arXiv 2401.11224, as released",
    reaches="its ball",
    shown_by="fgsm_wang2024(channels=1)",
)
@dataclass(frozen=True)
class FgsmWang2024(Climbing):
    """One blended step with swapped arguments of the loss, on three independent copies of the grey channel.

    This is the code released with Wang & Xu, arXiv 2401.11224. The network must take `channels` channels. The result
    has as many and cannot be stored as a scan. A scan of several channels is not copied: its own are perturbed, and it
    can be stored.

    Attributes:
        objective: the loss under the paper's name; the attack makes its swapped form large.
        swapped: False hands the loss its arguments in the right order, which shows what the swap alone does.
        channels: copies of a grey image, 1 or more.

    Raises:
        InputError: `swapped` is True and the objective has no swapped form; `channels` is out of range.
    """

    ball: Ball = Blend()
    swapped: bool = True
    channels: int = 3

    def __post_init__(self) -> None:
        require(self, channels=1)
        if self.swapped and self.objective not in SWAPPED:
            known = ", ".join(map(spec, SWAPPED))
            raise InputError(
                f"expected an objective of the paper ({known}), got {spec(self.objective)}; or write swapped=False"
            )

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        copies = image.expand(-1, self.channels, *image.shape[2:]) if image.shape[1] == 1 else image
        objective = SWAPPED[self.objective] if self.swapped else self.objective
        _, _, grad = climb(model, objective, copies.clone(), target, 0.0)
        x = self.ball.project(copies + self.ball.step(grad, copies), copies)
        return judge(model, self.ball, x, copies, target)
