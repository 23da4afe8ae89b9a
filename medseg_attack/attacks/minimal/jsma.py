"""JSMA: the few pixels that matter most, changed as far as they go."""

from dataclasses import dataclass

import torch

from medseg_attack.attacks.minimal.search import MinimalAttack, Moved, Search, walk
from medseg_attack.errors import require
from medseg_attack.numerics.samples import gradient_of
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import L0
from medseg_attack.types import Adversarial, Ball, Image, LogOdds


@register(
    "jsma",
    kind="attack",
    cost="up to steps + 2 forward, steps backward",
    norm="least l0",
    reaches="within 1.01 of the least",
    shown_by="jsma(l0(1.0), steps=480)",
)
@dataclass(frozen=True)
class Jsma(MinimalAttack):
    """The few pixels that matter most, changed as far as they go (JSMA; Papernot et al., arXiv 1511.07528).

    Saliency is the slope of the wanted class's margin over the best other, summed over the entries that are not
    adversarial yet. The paper's product, of what a pixel does for the wanted logit and against the sum of all others,
    depends on the logits' common shift, which log-odds do not know; of log-probabilities it is 0 wherever a pixel moves
    both alike, and the search gets stuck. Single pixels, not pairs, which a scan has too many of.

    Attributes:
        steps: rounds; no pixel is changed twice.
        share: of all pixels that one round changes, above 0 and up to 1.
        theta: change of such a pixel, above 0; 1 goes to black or white.

    Raises:
        InputError: `share` or `theta` is out of range.
    """

    norms = ("l0",)

    ball: Ball = L0()
    steps: int = 100
    share: float = 0.001
    theta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, share="(0, 1]", theta="(0, inf)")

    def search(self, search: Search) -> Adversarial:
        n = max(1, round(self.share * search.image[0].numel()))

        def move(x: Image, log_odds: LogOdds) -> Moved:
            gain = gradient_of(search.excess(log_odds).clamp(max=0), x)
            moved = (x.detach() + self.theta * gain.sign()).clamp(0, 1)
            stuck = (x.detach() != search.image) | (moved == x.detach())
            score = torch.where(stuck, 0.0, gain.abs()).flatten(1)
            top = score.topk(n, 1)
            chosen = torch.zeros_like(score, dtype=torch.bool).scatter_(1, top.indices, top.values > 0)
            return torch.where(chosen.view_as(x), moved, x.detach()), 1

        return walk(search, self.steps, move)
