"""The transfer attack, which perturbs images on other models than the attacked one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from medseg_attack.attacks.blackbox.ensembles import Apart, MeanLogits, MeanLoss, MeanProbabilities
from medseg_attack.attacks.finite import FiniteModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.judging import judge, truth_after
from medseg_attack.errors import InputError, NotFiniteError, require
from medseg_attack.models.surrogates import by_folder, ready
from medseg_attack.registry import register, with_eps
from medseg_attack.registry.abilities import Climbs
from medseg_attack.threat.binding import bind
from medseg_attack.types import (
    Adversarial,
    AroundAttack,
    Attack,
    Ball,
    Bindable,
    Fittable,
    Image,
    Mask,
    Model,
    Sweeps,
    Task,
)

FUSIONS = ("logits", "probabilities", "losses")


@register(
    "transfer",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="surrogate",
    norm="that of its attack",
    reaches="all in eps",
    shown_by="transfer(surrogate=oracle)",
)
@dataclass(frozen=True)
class Transfer(Bindable, AroundAttack):
    """An attack on surrogate models, whose images the attacked model scores (Bortsova et al., arXiv 2006.06356).

    The attacked model sees each image once. The paper studies what decides whether an attack transfers. A surrogate
    that answers at random draws by case, as the attacked model does.

    Attributes:
        surrogate: name or folder of a trained model, a registered model, a tuple of these, or `others`: the study's
            other models, so that each model is attacked from those left.
        attack: the attack that runs on the surrogates.
        fuse: how several surrogates become one. "logits" takes the mean of their logits, of an exclusive task before
            the softmax (Dong et al., arXiv 1710.06081); "probabilities" the mean of their probabilities (Liu et al.,
            arXiv 1611.02770); "losses" the mean of the objective.

    Raises:
        InputError: a field has no such value, the attack must be fitted, or it has no objective to fuse.
    """

    surrogate: Any = None
    attack: Attack = PGD()
    fuse: str = "logits"

    def __post_init__(self) -> None:
        require(self, fuse=FUSIONS)
        if self.fuse == "losses" and not isinstance(self.attack, Climbs):
            raise InputError(
                "expected an attack with an objective to fuse losses, got one without; write fuse='logits'"
            )
        if isinstance(self.attack, Fittable):
            raise InputError(
                "expected an attack that needs no fit for transfer, got one that is fitted to the attacked model; run "
                "it on the surrogate with --save-adversarial all, then 'medattack evaluate --images'"
            )
        object.__setattr__(self, "surrogate", by_folder(self.surrogate, "surrogate"))

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        (result,) = self.crafted(model.task, image, target, seeds, [self.ball])
        return rescored(model, self.ball, result, image, target)

    def sweep(
        self, model: Model, image: Image, target: Mask, seeds: Sequence[int], balls: Sequence[Ball]
    ) -> Iterator[Adversarial]:
        """The attack in several balls, one result for each; they share what the attack on the surrogates shares."""
        results = self.crafted(model.task, image, target, seeds, balls)
        return (rescored(model, ball, result, image, target) for ball, result in zip(balls, results, strict=True))

    def crafted(
        self, task: Task, image: Image, target: Mask, seeds: Sequence[int], balls: Sequence[Ball]
    ) -> Iterator[Adversarial]:
        """The attack's results on the surrogates in each ball, with the surrogates' harm."""
        fused, attack = self.fused(task, image), self.attack
        if isinstance(fused, Apart):
            n = len(fused.models)
            target = torch.cat([target] * n, 1)
            attack = replace(attack, objective=MeanLoss(attack.objective, n))  # type: ignore[attr-defined,type-var]
        finite = FiniteModel(fused, name="the surrogate of transfer")
        if isinstance(attack, Sweeps):
            results = attack.sweep(finite, image, target, seeds, balls)
        else:
            results = (with_eps(attack, ball.eps)(finite, image, target, seeds) for ball in balls)
        for result in results:
            if finite.lost_gradients or finite.lost_answers:
                raise NotFiniteError(
                    "expected finite answers and gradients of the surrogate of transfer, got NaN or infinity (MA022); "
                    "take another surrogate, or find the operation that overflows"
                )
            yield result

    def fused(self, task: Task, image: Image) -> Model:
        """The surrogates as one model on the image's device.

        Raises:
            InputError: there is no surrogate.
        """
        surrogates = self.surrogate if isinstance(self.surrogate, tuple) else (self.surrogate,)
        if not surrogates or None in surrogates:
            raise InputError("transfer needs a surrogate, got none; write transfer(surrogate='FOLDER OF A MODEL')")
        models = tuple(ready(make(task), image) for make in surrogates)
        if self.setting is not None:
            models = tuple(bind(model, self.setting) for model in models)
        if len(models) == 1:
            return models[0]
        return {"logits": MeanLogits, "probabilities": MeanProbabilities, "losses": Apart}[self.fuse](models)


def rescored(model: Model, ball: Ball, result: Adversarial, image: Image, target: Mask) -> Adversarial:
    """A result on another model with the attacked model's harm, against the truth moved as the result moved it."""
    truth = truth_after(result, target, model.task.exclusive)
    judged = judge(model, ball, result.image, image, truth)
    return replace(judged, size=result.size, flow=result.flow, truth=result.truth)
