"""Training with noise on what every convolution gets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medseg_attack.defences.training.base import Step, TrainingDefence
from medseg_attack.errors import InputError, require
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.types import Image

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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
        if not any(isinstance(layer, _CONVOLUTIONS) for layer in model.modules()):
            raise InputError("expected a network with convolutions for feature_noise, got one without; take unet_small")

    def loss(self, step: Step, image: Image, target: Tensor) -> Tensor:
        with _noisy(step.model, self.sigma, step.seeds[0]):
            return step.loss(image, target)


@contextmanager
def _noisy(model: nn.Module, sigma: float, seed: int) -> Iterator[None]:
    """A scope in which convolutions in training mode get noisy features; attacks inside see the model without noise."""
    rngs: dict[torch.device, torch.Generator] = {}

    def noisy(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not layer.training:
            return None
        x: Tensor = args[0]
        rng = rngs.setdefault(x.device, torch.Generator(x.device).manual_seed(seed))
        noise = torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype)
        return (x + sigma * x.detach().std() * noise, *args[1:])

    hooks = [layer.register_forward_pre_hook(noisy) for layer in model.modules() if isinstance(layer, _CONVOLUTIONS)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
