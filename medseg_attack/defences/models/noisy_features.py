"""A model whose features are noisy, also when it answers."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.defences.models.around import NoisyModel, as_model, member
from medseg_attack.errors import InputError, require_within
from medseg_attack.models.networks.convolutions import changed_inputs, has_convolutions
from medseg_attack.models.segmodel import SegModel
from medseg_attack.models.sliding_window import MirrorAverage, SlidingWindow
from medseg_attack.numerics.log_odds import mean_logits
from medseg_attack.numerics.samples import reseeded, widen
from medseg_attack.registry import register
from medseg_attack.types import Image, LogOdds, Task


@register("noisy_features", kind="model", trained=True, wraps="base")
def noisy_features(task: Task, base: Any = None, *, sigma: float = 0.1, draws: int = 10) -> SegModel:
    """The mean answer of a model with noise on the input of each convolution (RSE; Liu et al., arXiv 1712.00673).

    The model should be trained with the defence feature_noise. It is random, and useful to an attack that averages.

    Args:
        base: the model: name or folder of a checkpoint, or a spec that brings its weights.
        sigma: standard deviation of the noise, as a share of that of an image's features, 0 or more.
        draws: number of answers whose logits are averaged, 1 or more.

    Raises:
        InputError: the model is not trained, has no convolutions or works window by window, or an option is out of
            range.
    """
    require_within("sigma", sigma, "[0, inf)", 0.1)
    require_within("draws", draws, "[1, inf)", 10)
    model = member(base, task, "noisy_features")
    if not has_convolutions(model):
        raise InputError("expected a model with convolutions for noisy_features, got one without; take unet_small")
    if any(isinstance(layer, SlidingWindow | MirrorAverage) for layer in model.modules()):
        raise InputError(
            "expected a model that sees an image at once for noisy_features, got one with windows or mirrored copies; "
            "take a model without them"
        )
    return as_model(NoisyFeatures(model, sigma, draws if sigma else 1))


class NoisyFeatures(NoisyModel):
    """The network of `noisy_features`."""

    def forward(self, image: Image) -> LogOdds:
        (model,) = self.models
        seeds = self.draws.seeds(len(image))
        answers: list[LogOdds] = []
        for number in range(self.n):
            noise = _noise(self.sigma, reseeded(seeds, number))
            with changed_inputs(model, noise) if self.sigma else nullcontext():
                answers.append(model(image))
        if self.n == 1:
            return answers[0]
        stacked = torch.stack(answers)
        return mean_logits(stacked, stacked.new_full((self.n,), 1 / self.n), model.task.exclusive)


def _noise(sigma: float, seeds: Sequence[int]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Adds noise to the features that a layer gets, to those of sample `i` by `seeds[i]` alone."""
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noisy(layer: nn.Module, x: Tensor) -> Tensor:
        if len(x) != len(rngs):
            raise InputError(
                f"expected a network that keeps its batch of {len(rngs)} for noisy_features, got {len(x)}; take another"
            )
        noise = torch.stack([torch.randn(x.shape[1:], generator=rng) for rng in rngs]).to(x)
        spread = x.detach().flatten(1).std(1, correction=0)
        return x + sigma * widen(spread, x) * noise

    return noisy
