"""A learned denoiser, alone or as purification by noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.models.networks.denoiser import denoised, load_denoiser
from medseg_attack.numerics.samples import draw
from medseg_attack.registry import register
from medseg_attack.types import Image


@register(
    "denoiser",
    kind="defence",
    paper="Salman et al., NeurIPS 2020; Nie et al., ICML 2022",
    cost="1 forward, 1 of the denoiser for each step",
    attacked_with="averaged(pgd(steps=40), passes=20)",
)
@dataclass(frozen=True)
class DenoiserLayer(InputDefence):
    """Images behind a small network that takes out noise, trained by `medattack train --denoiser`.

    With `noise` it is purification: Gaussian noise of `sigma` is added first, to drown a perturbation, and taken out
    again (denoised smoothing; Salman et al., arXiv 2003.01908). Several steps take it out bit by bit, as diffusion does
    (Nie et al., arXiv 2205.07460), without drawing more. Published gains fell once the attack averaged over the noise
    and followed the gradient through all steps (DiffBreak, arXiv 2411.16598), as it does here.

    Attributes:
        file: folder of the denoiser.
        sigma: standard deviation of the noise that is taken out, above 0, in [0, 1] of the window.
        noise: whether as much is added first.
        steps: number of times that the network is asked, with less and less noise left.

    Raises:
        InputError: a field is out of range.
    """

    file: str = ""
    sigma: float = 0.1
    noise: bool = False
    steps: int = 1

    def __post_init__(self) -> None:
        require(self, sigma="(0, inf)", steps=1)

    @property
    def stochastic(self) -> bool:
        return self.noise

    @property
    def network(self) -> nn.Module:
        return load_denoiser(self.file)

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        x = image + self.sigma * draw(torch.randn, image, seeds) if self.noise else image
        for left in range(self.steps, 0, -1):
            clean = denoised(self.network, x, self.sigma * left / self.steps)
            x = clean + (left - 1) / left * (x - clean)
        return x
