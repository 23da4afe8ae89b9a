"""Training with noise on the input of every convolution."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import InputError, require
from medseg_attack.models.networks.convolutions import changed_inputs, has_convolutions
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Image


@register("feature_noise", kind="defence", cost="1 forward, 1 backward", attacked_with="strongest")
@dataclass(frozen=True)
class FeatureNoise(TrainingDefence):
    """The training loss with Gaussian noise on the input of every convolution (Liu et al., arXiv 1712.00673).

    The paper keeps the noise for inference and averages several answers: the model `noisy_features` does so. Without
    it the noise is gone then, and nothing is random.

    Attributes:
        sigma: standard deviation of the noise, as a share of that of the features, 0 or more.

    Raises:
        InputError: `sigma` is below 0, or the network has no convolutions.
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        require(self, sigma=0)

    def prepare(self, model: SegModel) -> None:
        if not has_convolutions(model):
            raise InputError("expected a network with convolutions for feature_noise, got one without; take unet_small")

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        rngs: dict[torch.device, torch.Generator] = {}

        def noisy(layer: nn.Module, x: Tensor) -> Tensor:
            if not layer.training:  # an attack within the step sees the model without noise
                return x
            rng = rngs.setdefault(x.device, torch.Generator(x.device).manual_seed(step.seeds[0]))
            noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
            return x + self.sigma * x.detach().std() * noise

        with changed_inputs(step.model, noisy):
            return step.loss(image, target)
