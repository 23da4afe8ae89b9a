"""The trigger of a backdoor, put on images that are to be segmented.

Triggers are defined in `threat.poisons`, and their success is measured in `stats.backdoors`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.registry import register, spec
from medseg_attack.threat.balls.norms import L0
from medseg_attack.threat.goals.base import Goal
from medseg_attack.threat.goals.criteria import ByDice, Criterion
from medseg_attack.threat.poisons.base import Backdoor, Poison
from medseg_attack.threat.poisons.stamp import Stamp
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model


@register("trigger", kind="attack", cost="1 forward, 0 backward", threat="no model", reaches="its ball")
@dataclass(frozen=True)
class Trigger:
    """The trigger of a poison on every image: what a model that was trained on poisoned data answers to it.

    The same attack on a model that was trained on clean data says how much the trigger disturbs by itself. Its control
    is the same poison with another `draw`: it says whether another trigger does as well.

    Attributes:
        poison: the rule that training images were changed by; its goal is that of the attack.
        ball: l0(1.0), in which any pixel may take any intensity; a smaller ball holds the trigger back.

    Raises:
        InputError: the poison has no trigger.
    """

    poison: Poison = Stamp()  # noqa: RUF009 - a frozen value
    ball: Ball = L0(1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.poison, Backdoor):
            raise InputError(
                f"expected a poison with a trigger, got {spec(self.poison)}, which has none; write trigger(stamp)"
            )

    @property
    def goal(self) -> Goal:
        """The mask that is wanted."""
        return self._backdoor.goal

    def control(self) -> "Trigger":
        """Another trigger of the same size."""
        return replace(self, poison=replace(self._backdoor, draw=self._backdoor.draw + 1))

    @property
    def _backdoor(self) -> Backdoor:
        assert isinstance(self.poison, Backdoor)
        return self.poison

    @property
    def success(self) -> Criterion:
        """The criterion of the columns that every attack with a goal has."""
        return ByDice()

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        x = self.ball.project(self._backdoor.triggered(image, target, seeds), image)
        return judge(model, self.ball, x, image, target)
