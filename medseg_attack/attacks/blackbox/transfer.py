"""Images made on other models than the attacked one, and the control that tells their structure from their size."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from medseg_attack.attacks.blackbox.ensembles import Apart, MeanLogits, MeanLoss, MeanProbabilities
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.numerics.flows import moved
from medseg_attack.registry import About, build, register, with_eps
from medseg_attack.registry.abilities import Climbs
from medseg_attack.types import Adversarial, Attack, Ball, Fittable, Image, Mask, Model, Sweeps, Task

FUSIONS = ("logits", "probabilities", "losses")


@register(
    "transfer",
    kind="attack",
    about=About(
        threat="surrogate", norm="that of its attack", reaches="all in eps", shown_by="transfer(surrogate=oracle)"
    ),
)
@dataclass(frozen=True)
class Transfer:
    """What another attack finds on surrogates (factors: Bortsova et al., arXiv 2006.06356).

    The image is made from the surrogates alone: the attacked model sees it finished, once, to be scored as every
    result is.

    Attributes:
        surrogate: a checkpoint's folder, a registered model, a tuple of them, or `others`: the study's other models,
            so that each is attacked from those left.
        attack: what is run on them.
        fuse: how several are one. "logits": their mean (Dong et al., arXiv 1710.06081), of an exclusive task before the
            softmax; "probabilities": their mean (Liu et al., arXiv 1611.02770); "losses": the mean
            of the objective.
    """

    surrogate: Any = None
    attack: Attack = PGD()
    fuse: str = "logits"

    def __post_init__(self) -> None:
        if self.fuse not in FUSIONS:
            raise InputError(f"expected fuse to be one of {', '.join(FUSIONS)}, got {self.fuse!r}; write one of them")
        if self.fuse == "losses" and not isinstance(self.attack, Climbs):
            raise InputError("expected an attack with an objective to fuse losses, got one without; take fuse='logits'")
        if isinstance(self.attack, Fittable):
            raise InputError(
                "expected an attack that needs no fit for transfer, got one that is fitted to the attacked model; run "
                "it on the surrogate with --save-adversarial all, then 'medattack evaluate --images'"
            )
        object.__setattr__(self, "surrogate", _by_folder(self.surrogate))

    @property
    def ball(self) -> Ball:
        return self.attack.ball

    @property
    def attacks(self) -> tuple[Attack, ...]:
        return (self.attack,)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        (found,) = self.crafted(model.task, image, target, seeds, [self.ball])
        return _scored(model, self.ball, found, image, target)

    def sweep(
        self, model: Model, image: Image, target: Mask, seeds: Sequence[int], balls: Sequence[Ball]
    ) -> Iterator[Adversarial]:
        """The same in several balls; they share what they share in the attack on the surrogates."""
        found = self.crafted(model.task, image, target, seeds, balls)
        return (_scored(model, ball, one, image, target) for ball, one in zip(balls, found, strict=True))

    def crafted(
        self, task: Task, image: Image, target: Mask, seeds: Sequence[int], balls: Sequence[Ball]
    ) -> Iterator[Adversarial]:
        """What the attack finds on the surrogates, judged by them, in each ball."""
        fused, attack = self._fused(task, image), self.attack
        if isinstance(fused, Apart):
            n = len(fused.models)
            target = torch.cat([target] * n, 1)
            attack = replace(attack, objective=MeanLoss(attack.objective, n))  # type: ignore[attr-defined,type-var]
        if isinstance(attack, Sweeps):
            yield from attack.sweep(fused, image, target, seeds, balls)
            return
        for ball in balls:
            yield with_eps(attack, ball.eps)(fused, image, target, seeds)

    def _fused(self, task: Task, image: Image) -> Model:
        given = self.surrogate if isinstance(self.surrogate, tuple) else (self.surrogate,)
        if not given or None in given:
            raise InputError("transfer needs a surrogate, got none; write transfer(surrogate='FOLDER OF A MODEL')")
        models = tuple(_ready(make(task), image) for make in given)
        if len(models) == 1:
            return models[0]
        return {"logits": MeanLogits, "probabilities": MeanProbabilities, "losses": Apart}[self.fuse](models)


def _scored(model: Model, ball: Ball, found: Adversarial, image: Image, target: Mask) -> Adversarial:
    """What was found elsewhere as the attacked model sees it, against the truth that an attack moved along."""
    truth = moved(target, found.flow, model.task.exclusive)
    return replace(judge(model, ball, found.image, image, truth), size=found.size, flow=found.flow)


def _by_folder(surrogate: Any) -> Any:
    if isinstance(surrogate, tuple):
        return tuple(map(_by_folder, surrogate))
    if isinstance(surrogate, str):
        return build(f"checkpoint({surrogate!r})", "model")
    if surrogate is not None and not isinstance(surrogate, functools.partial):
        raise InputError(f"expected surrogate to be a checkpoint's folder or a model, got {surrogate!r}; write such")
    return surrogate


def _ready(model: Model, image: Image) -> Model:
    """On the image's device and of its type, with nothing in it that would change."""
    if isinstance(model, nn.Module):
        return model.to(image).eval().requires_grad_(False)
    return model
