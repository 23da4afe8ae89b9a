"""DAG: small steps against the entries that are not adversarial yet."""

from dataclasses import dataclass

from medseg_attack.attacks.minimal.search import MinimalAttack, Moved, Search, walk
from medseg_attack.errors import require
from medseg_attack.numerics.samples import TINY, gradient_of, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, LogOdds

WIDEST = Linf(64 / 255)


@register(
    "dag",
    kind="attack",
    cost="up to steps + 2 forward, steps backward",
    reaches="within 1.01 of the least",
    shown_by="dag(linf(0.5), steps=300)",
)
@dataclass(frozen=True)
class Dag(MinimalAttack):
    """Small steps against the entries that are not adversarial yet (DAG; Xie et al., ICCV 2017, arXiv 1703.08603).

    The gradient of their summed margins, divided by its largest entry, is added until the case succeeds; so the change
    is at most a step larger than needed. Every step ends within [0, 1], which those of the paper's code do not; a case
    that fails counts as a failure and not as a clean success. The step is of Linf; the change may be measured in any
    norm.

    Attributes:
        step_size: gamma, the largest change of a pixel in one step, absolute, > 0; the paper's 0.5 of 255 is 0.002.

    Raises:
        InputError: `step_size` is not above 0.
    """

    ball: Ball = WIDEST
    steps: int = 200
    step_size: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, step_size="(0, inf)")

    def search(self, search: Search) -> Adversarial:
        def move(x: Image, log_odds: LogOdds) -> Moved:
            grad = gradient_of(search.excess(log_odds).clamp(max=0), x)
            return x + self.step_size * grad / (widen(grad.abs().flatten(1).amax(1), grad) + TINY), 1

        return walk(search, self.steps, move)
