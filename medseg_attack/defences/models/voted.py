"""The vote of a model on noisy copies of an image."""

from typing import Any

import torch

from medseg_attack.defences.models.around import NoisyModel, as_model, member
from medseg_attack.errors import require_within
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.log_odds import log_odds_of_votes, mean_probabilities
from medseg_attack.numerics.samples import draw, reseeded, straight_through
from medseg_attack.registry import register
from medseg_attack.types import Image, LogOdds, Task


@register("voted", kind="model", trained=True, wraps="base")
def voted(task: Task, base: Any = None, *, sigma: float = 0.1, draws: int = 8) -> SegModel:
    """The vote of a model on noisy copies of an image, pixel by pixel (MedRDF; Xu et al., arXiv 2111.14564).

    Its answer is the log-odds of the share of votes. Votes have no gradient: an attack that knows the defence takes
    that of the mean probability.

    Args:
        base: the model: name or folder of a checkpoint, or a spec that brings its weights.
        sigma: standard deviation of the Gaussian noise, 0 or more, in [0, 1] of the window. It may leave [0, 1].
        draws: number of copies, 1 or more.

    Raises:
        InputError: the model is not trained, or an option is out of range.
    """
    require_within("sigma", sigma, "[0, inf)", 0.1)
    require_within("draws", draws, "[1, inf)", 8)
    return as_model(Vote(member(base, task, "voted"), sigma, draws))


class Vote(NoisyModel):
    """The network of `voted`."""

    blocks_gradient = True

    def forward(self, image: Image) -> LogOdds:
        (model,) = self.models
        seeds = self.draws.seeds(len(image))
        copies = (
            image + self.sigma * draw(torch.randn, image, reseeded(seeds, number)) if self.sigma else image
            for number in range(self.n)
        )
        stacked = torch.stack([model(noisy) for noisy in copies])
        weights = stacked.new_full((self.n,), 1 / self.n)
        hard = log_odds_of_votes(torch.stack([model.decide(each) for each in stacked]), weights, stacked)
        slope = 0 * stacked[0] if self.backward == "own" else mean_probabilities(stacked, weights)
        return straight_through(hard, slope)
