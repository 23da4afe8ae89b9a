"""An attack on hidden features: those of another patient's image, or any but the image's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import require
from medseg_attack.models.hidden_maps import features_of
from medseg_attack.numerics.fields import blurred, stretched
from medseg_attack.numerics.samples import TINY, scaled, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import even_change
from medseg_attack.threat.goals.stored import AnotherPatient
from medseg_attack.threat.goals.toward import Toward
from medseg_attack.types import Adversarial, Bindable, Image, Mask, Model, PerSample

WIDTH = 13  # of the kernel that tells low frequencies, in pixels: a deviation of 2


@register(
    "mafl",
    kind="attack",
    cost="steps + 2 forward, steps backward",
    paper="Sun et al., J. Med. Imaging 12(4):044501, 2025",
    reaches="its ball",
    shown_by="mafl(steps=8)",
)
@dataclass(frozen=True)
class Mafl(Bindable, Climbing):
    """Momentum on the objective, on hidden features and against low frequencies (MAFL; Sun et al. 2025).

    It climbs `weight * objective + features * cos - smoothness * mean (G * change)^2`. The cosine is that of the
    deepest hidden map, or of the answer of a model's own encoder, with that of another patient's image, whose mask is
    the goal: `mafl(objective=toward(bce, another_patient))`. Without such a goal it is minus the cosine with that of
    the untouched image, so that features leave it; the paper is targeted alone. The formulas are reconstructed from the
    abstract. It returns the most harmful iterate, the untouched image among them.

    With `weight=0` it climbs features alone, `mafl(weight=0, smoothness=0)` is `1 - cos(E(x'), E(x))` of an encoder E.
    No prompt of a promptable model has a part in the path, only in which iterate is the most harmful. So such an attack
    is not averaged over the prompts of a model that names its encoder.

    Attributes:
        objective: function of log-odds and truth that the features are added to.
        momentum: weight of the last direction in the next one, 0 or more.
        features: weight of the cosine, 0 or more.
        smoothness: weight of the low frequencies of the change, as a share of a change of all values alike, 0 or more.
        weight: of the objective, 0 or more.

    Raises:
        InputError: a field is out of range.
    """

    steps: int = 20
    step_size: float = 0.25
    momentum: float = 1.0
    features: float = 1.0
    smoothness: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self, steps=1, step_size=0, momentum=0, features=0, smoothness=0, weight=0)

    @property
    def features_alone(self) -> bool:
        """Whether the objective has no part in what it climbs."""
        return self.weight == 0

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        donors = self._donors(image)
        with torch.no_grad():
            log_odds, maps = features_of(model, image if donors is None else donors)
            log_odds = log_odds if donors is None else model(image)
        reference, sign = maps.flatten(1), -1.0 if donors is None else 1.0
        worst = _judged(self, model, image, image, target, log_odds)
        x, direction = self.ball.sample(image, seeds), torch.zeros_like(image)
        for step in range(self.steps):
            x = x.detach().requires_grad_()
            log_odds, maps = features_of(model, x)
            loss = self.weight * self.climbed(model)(log_odds, target, step / self.steps)
            loss = loss + sign * self.features * torch.cosine_similarity(maps.flatten(1), reference, eps=TINY)
            loss = loss - self.smoothness * self._lowness(x, image)
            (grad,) = torch.autograd.grad(loss.sum(), x)
            worst |= _judged(self, model, x, image, target, log_odds)
            direction = self.momentum * direction + scaled(grad)
            x = self.ball.project(x.detach() + self.step_size * self.ball.step(direction, x.detach()), image)
        return worst | judge(model, self.ball, x, image, target)

    def _donors(self, image: Image) -> Image | None:
        """The images of the patients whose masks are wanted; None where the goal is no other patient's mask."""
        objective, setting = self.objective, self.setting
        if not (isinstance(objective, Toward) and isinstance(objective.goal, AnotherPatient)):
            return None
        if setting is None or setting.donors is None:
            return None  # the goal itself refuses to go on without donors
        cases = [objective.goal.donor_of(case, setting.donors) for case in setting.cases]
        return torch.cat([stretched(case.image[None].to(image), tuple(image.shape[2:])) for case in cases])

    def _lowness(self, x: Image, image: Image) -> PerSample:
        """The mean square of the change's low frequencies, in units of the largest change of all values alike."""
        largest = even_change(self.ball, image).flatten(1).amax(1)
        return (blurred(x - image, WIDTH) / (widen(largest, x) + TINY)).square().flatten(1).mean(1)


def _judged(attack: Mafl, model: Model, x: Image, image: Image, target: Mask, log_odds: Tensor) -> Adversarial:
    return judge_prediction(model, attack.ball, x, image, model.decide(log_odds.detach()), target)
