"""An attack that climbs its objective less a detector's score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch.nn import functional

from medseg_attack.attacks.evading.watched import Evader, WatchedModel
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import LogOdds, Mask, Objective, PerSample

WEIGHTS = (0.1, 1.0, 10.0)


@register(
    "evading",
    kind="attack",
    cost="attack forward, attack backward",
    paper="Carlini & Wagner, arXiv 1705.07263; Tramer et al., arXiv 2002.08347",
    reaches="all in eps",
    shown_by="evading(attack=pgd(steps=8))",
)
@dataclass(frozen=True)
class Evading(Evader):
    """An attack that climbs its objective and lowers a detector's score, and keeps what raises no alarm.

    The score counts as far as it is above the limit alone: less would make the scan suspicious for being too usual
    (Carlini & Wagner, arXiv 1705.07263; Tramer et al., arXiv 2002.08347). Of all images that the attack looks at, it
    keeps the most harmful one without an alarm, sample by sample; where there is none, the least suspicious one. The
    images of a scan are kept together where the detector looks at whole scans. What has no gradient in a detector lends
    that of a stand-in (BPDA).

    Attributes:
        detector: one that was fitted and calibrated, such as saved('FILE'); None: the attack itself.
        weight: of the score's excess in standard deviations of clean scores, beside the objective; of several, each is
            climbed. None: 0.1, 1 and 10.

    Raises:
        InputError: a weight is below 0, the detector was not fitted, or the attack moves anatomy.
    """

    weight: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights or min(self.weights) < 0:
            raise InputError(
                f"expected weights of 0 or more for {type(self).__name__.lower()}, got {self.weight}; write weight=1"
            )

    @property
    def weights(self) -> tuple[float, ...]:
        """Each weight that is climbed."""
        if self.weight is None:
            return WEIGHTS
        return self.weight if isinstance(self.weight, tuple) else (self.weight,)

    def labelled(self) -> Evader:
        return replace(self, weight=None)

    def climbs(self, watched: WatchedModel) -> Sequence[Callable[[Objective], Objective]]:
        return [partial(Penalised, watched=watched, weight=weight) for weight in self.weights]


@dataclass(frozen=True, eq=False)
class Penalised:
    """An objective less the excess of a detector's score on the images that the model was last asked about."""

    height: Objective
    watched: WatchedModel
    weight: float

    def __call__(self, log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
        height = self.height(log_odds, target, progress)
        if len(self.watched.excess) != len(height) or not bool((self.watched.excess > 0).any()):
            return height  # a score below the limit has no slope: nothing is to be computed for it
        return height - self.weight * functional.relu(self.watched.excess).to(height)
