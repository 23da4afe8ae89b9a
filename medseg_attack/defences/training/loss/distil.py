"""Training towards the soft answers of another model, or of the model itself some steps ago."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import InputError, require
from medseg_attack.models.segmodel import frozen
from medseg_attack.models.surrogates import by_folder, ready
from medseg_attack.numerics.log_odds import divergence, softened
from medseg_attack.registry import register
from medseg_attack.types import Image, LogOdds


@register("distil", kind="defence", cost="2 forward, 1 backward", attacked_with="strongest")
@dataclass(frozen=True)
class Distil(TrainingDefence):
    """The training loss mixed with the divergence from a teacher's soft answers (Hinton et al., arXiv 1503.02531).

    The teacher sees the clean image, and the student what the defences behind this one make of it: in front of
    `adversarial`, with `weight=1`, this is adversarially robust distillation (Goldblum et al., arXiv 1905.09747). With
    `temperature=20, weight=1` it is defensive distillation (Papernot et al., arXiv 1511.04508), which hides gradients.

    Attributes:
        teacher: folder of a trained model, or a registered model that brings its weights; None: the running mean of
            the student's own weights (self-distillation).
        weight: weight of the divergence in the loss, in [0, 1]; the training loss has the rest.
        temperature: divisor of both models' logits, above 0; the divergence is multiplied by its square.
        momentum: weight of the running mean of the student's weights when a step is added, in [0, 1].

    Raises:
        InputError: a field is out of range, or there are several teachers.
    """

    teacher: Any = None
    weight: float = 0.5
    temperature: float = 2.0
    momentum: float = 0.99

    def __post_init__(self) -> None:
        require(self, weight="[0, 1]", momentum="[0, 1]", temperature=1e-3)
        object.__setattr__(self, "teacher", by_folder(self.teacher, "teacher"))
        if isinstance(self.teacher, tuple):
            raise InputError("expected one teacher for distil, got several; name one")

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        if self.weight == 0:
            return step.loss(image, target)
        exclusive = step.model.task.exclusive
        soft = softened(self._taught(step, image), self.temperature, exclusive)

        def distilled(log_odds: LogOdds, truth: Tensor) -> Tensor:
            student = softened(log_odds, self.temperature, exclusive)
            apart = self.temperature**2 * divergence(soft, student, exclusive).mean()
            return (
                apart if self.weight == 1 else (1 - self.weight) * step.criterion(log_odds, truth) + self.weight * apart
            )

        return replace(step, criterion=distilled).loss(image, target)

    @torch.no_grad()
    def _taught(self, step: Step, image: Image) -> LogOdds:
        """The teacher's answer."""
        if self.teacher is not None:
            teacher = ready(self.teacher(step.model.task), image)
            return teacher(image)
        for name, value in step.model.state_dict().items():
            mean = step.state.get(name)
            moves = mean is not None and value.is_floating_point()
            step.state[name] = torch.lerp(value, mean.to(value), self.momentum) if moves else value.clone()  # type: ignore[union-attr]
        with frozen(step.model) as model:
            answer: LogOdds = functional_call(model, dict(step.state), (image,))
        return answer
