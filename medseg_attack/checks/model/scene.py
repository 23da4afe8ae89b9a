"""A scene for the checks of a model: the model, a few cases, the attacks of a run."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medseg_attack.numerics.samples import widen
from medseg_attack.registry.abilities import Climbs
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import bce, margin
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Attack, Batch, Donors, Image, LogOdds, Model, Objective, PerSample, Setting


@dataclass(frozen=True, eq=False)
class Scene:
    """A model, a few cases and the attacks of a run: what the checks look at.

    Attributes:
        attacks: those of the run; the checks take their objectives and budgets.
        log_odds: the model's output on the untouched images.
        donors: cases whose masks the goal of an attack may take.
    """

    model: Model
    batch: Batch
    attacks: tuple[Attack, ...]
    log_odds: LogOdds
    donors: Donors | None = None

    @property
    def image(self) -> Image:
        return self.batch.image

    @property
    def objective(self) -> Objective:
        """The first that an attack of the run climbs, on these cases."""
        climbed = [attack.objective for attack in self.attacks if isinstance(attack, Climbs)]
        task = self.model.task
        return for_task(bind(climbed[0], Setting(task, self.batch.cases, self.donors)), task) if climbed else bce

    @property
    def eps(self) -> float:
        """The largest budget per pixel of the run, or 8/255 where it has none."""
        return max((a.ball.eps for a in self.attacks if isinstance(a.ball, Linf)), default=0.0) or 8 / 255

    @cached_property
    def gradient(self) -> Image | None:
        """The gradient of margins, which no loss saturates, by the image; None where there is no path."""
        return slope(self, margin)

    def names(self, wrong: Tensor) -> str:
        """The first cases where `wrong` holds, (samples,)."""
        ids = [case.id for case, bad in zip(self.batch.cases, wrong.tolist(), strict=True) if bad]
        return ", ".join(ids[:3]) or "all cases"

    def loss(self, x: Image, objective: Objective) -> Tensor:
        """The objective at `x` per sample, in double precision so that small differences survive."""
        with torch.no_grad():
            return objective(self.model(x).double(), self.batch.target, 0.0)


def slope(scene: Scene, objective: Objective) -> Image | None:
    """The gradient of the objective by the image; None where there is no path."""
    x = scene.image.detach().requires_grad_()
    log_odds = scene.model(x)
    if not log_odds.requires_grad:
        return None
    loss = objective(log_odds, scene.batch.target, 0.0).sum()
    gradient: Image | None = torch.autograd.grad(loss, x, allow_unused=True)[0]
    return gradient


def organs(scene: Scene) -> Tensor:
    """A mask of all scored classes, (samples, *grid); the whole image of a case that has none."""
    organ = scene.batch.target[:, scene.model.task.scored_channels].any(1)
    empty = ~organ.flatten(1).any(1)
    return organ | widen(empty, organ)


def share_of(part: Tensor, whole: Tensor) -> PerSample:
    """The pixels of `part` over those of `whole`, two masks of one shape, per sample."""
    share: Tensor = part.flatten(1).sum(1) / whole.flatten(1).sum(1)
    return share
