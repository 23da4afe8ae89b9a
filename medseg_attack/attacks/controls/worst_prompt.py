"""The control that leaves the image as it is and moves the prompts of a promptable model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError, require
from medseg_attack.models.prompts import Prompted
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.samples import draw, reseeded
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.types import Adversarial, AroundModel, Bindable, Image, Mask, Model, Setting


@register(
    "worst_prompt",
    kind="attack",
    cost="prompts forward, 0 backward",
    threat="no model",
    norm="none: the image stays",
    reaches="what is known in tests/attacks/test_worst_prompt.py, as it needs prompts",
)
@dataclass(frozen=True)
class WorstPrompt(Bindable):
    """The untouched image under the worst of several prompts: how far a promptable model falls without an attacker.

    The first of them is the one that the untouched image is scored with. Each other one is that one with every
    coordinate moved by U(-jitter, jitter) and held to the slice; the prompts of all organs move together. Sides of a
    box that pass each other change places. The worst by harm is what the image is scored with.

    Attributes:
        prompts: number of prompts, 1 or more.
        jitter: the most that a coordinate moves, in pixels of the scan, 0 or more.

    Raises:
        InputError: an option is out of range, or the model is not promptable.
    """

    ball = Linf(0.0)

    prompts: int = 32
    jitter: float = 10.0

    def __post_init__(self) -> None:
        require(self, prompts=1, jitter=0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        setting = self.setting or Setting(model.task)
        prompted = _prompted(model)
        own = prompted.bind(Setting(model.task, setting.cases)).prompts(len(image)).to(image)
        worst: Adversarial | None = None
        for number in range(self.prompts):
            jitter = self.jitter if number else 0.0
            moved = own + jitter * (2 * draw(torch.rand, own, reseeded(seeds, number)) - 1)
            prompts = prompted.policy.held(moved, tuple(image.shape[2:]))
            bound = bind(model, replace(setting, prompts=prompts))
            result = replace(judge(bound, self.ball, image, image, target), prompts=prompts)
            worst = result if worst is None else worst | result
        assert worst is not None
        return worst


def _prompted(model: Model) -> Prompted:
    """The promptable network within a model.

    Raises:
        InputError: it has none.
    """
    while isinstance(model, AroundModel):
        model = model.model
    if isinstance(model, SegModel) and isinstance(model.net, Prompted):
        return model.net
    raise InputError("expected a promptable model for worst_prompt, got another; name own(..., prompt='box')")
