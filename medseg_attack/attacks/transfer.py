"""Images made on other models than the attacked one, and the control that tells their structure from their size."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_attack.attacks.baselines import judged
from medseg_attack.attacks.gradient import PGD
from medseg_attack.errors import InputError
from medseg_attack.registry import About, build, register, with_eps
from medseg_attack.types import (
    Adversarial,
    Attack,
    Ball,
    Image,
    LogOdds,
    Mask,
    Model,
    Objective,
    PerSample,
    Task,
)
from medseg_attack.warp import moved

FUSIONS = ("logits", "probabilities", "losses")


@register("transfer", kind="attack", about=About(threat="surrogate", norm="that of its attack"))
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
            raise InputError(f"expected fuse to be one of {', '.join(FUSIONS)}, got {self.fuse!r}; check it")
        if self.fuse == "losses" and not hasattr(self.attack, "objective"):
            raise InputError("expected an attack with an objective to fuse losses, got one without; take fuse='logits'")
        if hasattr(self.attack, "fit"):
            raise InputError(
                "expected an attack that needs no fit for transfer, got one that is fitted to the attacked model; run "
                "it on the surrogate with --save-adversarial all, then 'medattack evaluate --images'"
            )
        object.__setattr__(self, "surrogate", _by_folder(self.surrogate))

    @property
    def ball(self) -> Ball:
        return self.attack.ball

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
        if hasattr(attack, "sweep"):
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
    return replace(judged(model, ball, found.image, image, truth), size=found.size, flow=found.flow)


def _by_folder(surrogate: Any) -> Any:
    if isinstance(surrogate, tuple):
        return tuple(map(_by_folder, surrogate))
    if isinstance(surrogate, str):
        return build(f"checkpoint({surrogate!r})", "model")
    if surrogate is not None and not isinstance(surrogate, functools.partial):
        raise InputError(f"expected surrogate to be a checkpoint's folder or a model, got {surrogate!r}; check it")
    return surrogate


def _ready(model: Model, image: Image) -> Model:
    """On the image's device and of its type, with nothing in it that would change."""
    if isinstance(model, nn.Module):
        return model.to(image).eval().requires_grad_(False)
    return model


@dataclass(frozen=True)
class MeanLogits:
    """Several models as one with the mean of their logits.

    Log-probabilities are logits less what a pixel's classes share, so their mean has the softmax of the mean logits.
    """

    models: tuple[Model, ...]

    @property
    def task(self) -> Task:
        return self.models[0].task

    def __call__(self, image: Image) -> LogOdds:
        every = torch.stack([model(image) for model in self.models])
        if not self.task.exclusive:
            return every.mean(0)
        return _softmax_log_odds(F.logsigmoid(every).mean(0))

    def decide(self, log_odds: LogOdds) -> Mask:
        return self.models[0].decide(log_odds)


@dataclass(frozen=True)
class MeanProbabilities(MeanLogits):
    """Several models as one with the mean of their probabilities."""

    def __call__(self, image: Image) -> LogOdds:
        every = torch.stack([model(image) for model in self.models])
        return torch.logsumexp(F.logsigmoid(every), 0) - torch.logsumexp(F.logsigmoid(-every), 0)


@dataclass(frozen=True)
class Apart(MeanLogits):
    """Several models side by side as one with n times as many classes; each decides for itself."""

    @property
    def task(self) -> Task:
        own = self.models[0].task
        return replace(own, classes=own.classes * len(self.models))

    def __call__(self, image: Image) -> LogOdds:
        return torch.cat([model(image) for model in self.models], 1)

    def decide(self, log_odds: LogOdds) -> Mask:
        parts = zip(self.models, log_odds.chunk(len(self.models), 1), strict=True)
        return torch.cat([model.decide(part) for model, part in parts], 1)


@dataclass(frozen=True)
class MeanLoss:
    """The mean of an objective over models side by side, whose truth is repeated as their classes are."""

    objective: Objective
    n: int

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        pairs = zip(log_odds.chunk(self.n, 1), target.chunk(self.n, 1), strict=True)
        return torch.stack([self.objective(*pair, progress) for pair in pairs]).mean(0)


def _softmax_log_odds(logits: Tensor) -> LogOdds:
    """`z_k - logsumexp` of the others, over dimension 1."""
    k, wide = logits.shape[1], (1,) * (logits.ndim - 2)
    own = torch.zeros(k, k).masked_fill(torch.eye(k, dtype=torch.bool), -torch.inf).to(logits)
    return logits - torch.logsumexp(logits.unsqueeze(1) + own.view(1, k, k, *wide), 2)


@register("shuffled", kind="attack", about=About(threat="that of its attack", norm="that of its attack"))
@dataclass(frozen=True)
class Shuffled:
    """Another attack's change with its pixels in random places: its size without its structure.

    The control of Bortsova et al., arXiv 2006.06356: what transfers no better than this does not transfer.
    """

    attack: Attack = PGD()

    @property
    def ball(self) -> Ball:
        return self.attack.ball

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        found = self.attack(model, image, target, seeds)
        if found.flow is not None:
            raise InputError("expected an attack that adds to the image for shuffled, got one that moves it; drop it")
        image = image.expand_as(found.image)
        change = (found.image - image).flatten(2)
        places = [torch.randperm(change.shape[2], generator=torch.Generator().manual_seed(s ^ 1)) for s in seeds]
        elsewhere = torch.stack([one[:, at.to(one.device)] for one, at in zip(change, places, strict=True)])
        x = self.ball.project(image + elsewhere.view_as(image), image)
        return judged(model, self.ball, x, image, target)
