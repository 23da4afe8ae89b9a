"""Attacks that know a defence: through stand-ins where its gradient leads nowhere, on average where it is random."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from medseg_attack.attacks.composed.both_norms import BothNorms
from medseg_attack.attacks.counting import CountedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import require
from medseg_attack.numerics.log_odds import mean_logits
from medseg_attack.registry import register
from medseg_attack.threat.binding import bind
from medseg_attack.types import (
    Adversarial,
    AroundAttack,
    AroundModel,
    Attack,
    Backward,
    Bindable,
    Image,
    LogOdds,
    Mask,
    Model,
    Setting,
)


@dataclass(frozen=True)
class MeanOfPasses(AroundModel):
    """The mean logits of several passes of a random model; one that answers the same twice is asked twice.

    Attributes:
        passes: number of passes, 1 or more.
    """

    model: Model
    passes: int

    def __call__(self, image: Image) -> LogOdds:
        answers = [self.model(image) for _ in range(min(self.passes, 2))]
        if torch.equal(answers[0], answers[-1]):
            return answers[0]
        answers += [self.model(image) for _ in range(self.passes - 2)]
        weights = answers[0].new_full((self.passes,), 1 / self.passes)
        return mean_logits(torch.stack(answers), weights, self.task.exclusive)


@register(
    "averaged",
    kind="attack",
    cost="up to passes * attack forward, passes * attack backward",
    reaches="all in eps",
    shown_by="averaged(pgd(steps=8))",
)
@dataclass(frozen=True)
class Averaged(AroundAttack):
    """An attack on the mean of several passes of a random model, drawn afresh each time (EOT; arXiv 1707.07397).

    Athalye et al. average the loss; here the logits within it are averaged, so that any attack can be averaged and a
    pass that is certain weighs no less. On a model without randomness it is the attack itself.

    Attributes:
        passes: passes for each that the attack makes, 1 or more.

    Raises:
        InputError: `passes` is below 1.
    """

    attack: Attack = PGD()
    passes: int = 10

    def __post_init__(self) -> None:
        require(self, passes=1)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        counted = CountedModel(model)
        mean = CountedModel(MeanOfPasses(counted, self.passes))
        result = self.attack(mean, image, target, seeds)
        if result.passes is None:
            return result
        each = counted.forwards / max(mean.forwards, 1)
        return replace(result, passes=(result.passes * each).round().long())


@register(
    "bpda", kind="attack", cost="attack forward, attack backward", reaches="all in eps", shown_by="bpda(pgd(steps=8))"
)
@dataclass(frozen=True)
class ThroughStandIns(Bindable, AroundAttack):
    """An attack whose gradients go through smooth stand-ins of a defence's layers (BPDA; arXiv 1802.00420).

    The answers are those of the defended model; only its slope is another. On a model without such layers it is the
    attack itself. `medattack ls defences` says which layers have a gradient of their own that is of use.

    Attributes:
        everywhere: False replaces the gradient of layers whose own is of no use, True that of every layer.
    """

    attack: Attack = PGD()
    everywhere: bool = False

    @property
    def backward(self) -> Backward:
        """The gradient of layers that the model is bound to: see `Setting`."""
        return "smooth" if self.everywhere else "adapted"

    def bind(self, setting: Setting) -> "ThroughStandIns":
        adapted = replace(setting, backward=self.backward)
        return replace(self, setting=adapted, attack=bind(self.attack, adapted))

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        setting = self.setting or Setting(model.task, backward=self.backward)
        return self.attack(bind(model, setting), image, target, seeds)


def core(attack: Any) -> Any:
    """The attack within those that know a defence."""
    return core(attack.attack) if isinstance(attack, Averaged | ThroughStandIns | BothNorms) else attack


def is_averaged(attack: Any) -> bool:
    """Whether the attack is one on the mean of passes."""
    if isinstance(attack, ThroughStandIns | BothNorms):
        return is_averaged(attack.attack)
    return isinstance(attack, Averaged)


def backward_of(attacks: Sequence[Any]) -> Backward:
    """The gradient that attacks take of a defence's layers: that of stand-ins if one of them does."""
    for attack in attacks:
        while isinstance(attack, Averaged | BothNorms):
            attack = attack.attack
        if isinstance(attack, ThroughStandIns):
            return attack.backward
    return "own"
